"""The mail server and the receiver of webhooks, equally slow for every stage: `python -m benchmarks.ladder.outside
SMTP_PORT HTTP_PORT`. `GET /` on the second tells how much has arrived.
"""

import asyncio
import json
import sys
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

MAIL_SECONDS = 0.25
WEBHOOK_SECONDS = 0.20


class _Outside:
    def __init__(self) -> None:
        self.mails = 0
        self.webhooks = 0

    async def handle_DATA(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(MAIL_SECONDS)
        self.mails += 1
        return "250 accepted"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(_length(head))
                if head.startswith(b"POST"):
                    await asyncio.sleep(WEBHOOK_SECONDS)
                    self.webhooks += 1
                body = json.dumps({"mails": self.mails, "webhooks": self.webhooks}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def main(smtp_port: int, http_port: int) -> None:
    outside: Any = _Outside()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: SMTP(outside, hostname="outside"), "127.0.0.1", smtp_port)
    async with await asyncio.start_server(outside.answer, "127.0.0.1", http_port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
