// Where the server is, the client asks its environment.
export default {
  onehop: {
    input: process.env.DOCUMENT,
    output: { target: process.env.TARGET, client: "fetch", baseUrl: { runtime: "process.env.BASE_URL" } },
  },
};
