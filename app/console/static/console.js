// Buttons and forms call the documented API: data-action="POST /v1/…" says which call, data-then where to go after it.
"use strict";

// Outside of the content, which a refresh replaces. What is shown only once stays until the page is left.
const notice = (text, stays = false) => {
  const place = document.getElementById("notice");
  if (!place) return;
  place.textContent = text;
  place.hidden = false;
  clearTimeout(notice.timer);
  if (!stays) notice.timer = setTimeout(() => { place.hidden = true; }, 8000);
};

const told = (problem, status) => {
  const fields = (problem.errors || []).map((error) => error.message || error.detail).filter(Boolean);
  return [problem.detail || problem.title || `The server answered ${status}.`, ...fields].join(" ");
};

async function call(action, body, more = {}) {
  const [method, path] = action.split(" ");
  const merges = method === "PATCH";
  const headers = body === undefined ? more : { ...more, "Content-Type": merges ? "application/merge-patch+json" : "application/json" };
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  let content = {};
  try { content = text ? JSON.parse(text) : {}; } catch { /* Not from the API, such as the page of a proxy. */ }
  if (!answer.ok) throw new Error(told(content, answer.status));
  return content;
}

function valuesOf(form) {
  const values = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.dataset.list !== undefined) {
      values[field.name] ??= [];
      if (field.checked) values[field.name].push(field.value);
    } else if (field.type === "checkbox") values[field.name] = field.checked;
    else values[field.name] = field.value === "" && field.type !== "password" ? null : field.value;
  }
  return values;
}

function refresh() {
  const content = document.getElementById("content");
  if (content) htmx.trigger(content, "refresh");
}

async function act(element, body) {
  if (element.dataset.confirm && !confirm(element.dataset.confirm)) return;
  const fault = element.querySelector(".fault");
  if (fault) fault.textContent = "";
  const button = element.matches("form") ? element.querySelector("button") : element;
  button.setAttribute("aria-busy", "true");
  try {
    const content = await call(element.dataset.action, body);
    if (content.mfa_required && element.dataset.secondFactor) {
      const next = document.getElementById(element.dataset.secondFactor);
      next.elements.mfa_token.value = content.mfa_token;
      element.hidden = true;
      next.hidden = false;
      next.elements.code.focus();
    } else if (element.dataset.then) location.assign(element.dataset.then);
    else {
      const shown = element.dataset.shows && content[element.dataset.shows];
      notice(shown ? `${element.dataset.said} ${shown}` : element.dataset.said || "Done.", Boolean(shown));
      if (element.matches("form")) element.reset();
      refresh();
    }
  } catch (error) {
    if (fault) fault.textContent = error.message;
    else notice(error.message);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) act(button, button.dataset.body ? JSON.parse(button.dataset.body) : undefined);
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-action]")) return;
  event.preventDefault();
  act(event.target, valuesOf(event.target));
});

// By a code: the one that the person asks for by e-mail, or that of the link which a development server prints.
function enterByCode(email, code) {
  const form = document.getElementById("by-code");
  document.querySelector('[data-action="POST /v1/auth/login"]').hidden = true;
  document.getElementById("ask-for-code").hidden = true;
  form.hidden = false;
  form.elements.email.value = email;
  form.elements.code.value = code;
  if (code) act(form, valuesOf(form));
  else form.elements.code.focus();
}

document.getElementById("ask-for-code")?.addEventListener("click", async () => {
  const form = document.querySelector('[data-action="POST /v1/auth/login"]');
  if (!form.elements.email.reportValidity()) return;
  try {
    await call("POST /v1/auth/code", { email: form.elements.email.value });
    enterByCode(form.elements.email.value, "");
  } catch (error) { form.querySelector(".fault").textContent = error.message; }
});

if (document.body.dataset.opensLinks !== undefined && location.hash.includes("code=")) {
  const given = new URLSearchParams(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  enterByCode(given.get("email"), given.get("code"));
}

// A page is not replaced while its reader types into it, nor while it is hidden.
document.addEventListener("htmx:before:request", (event) => {
  const typing = document.activeElement?.matches("#content input, #content select, #content textarea");
  const isPoll = event.detail.ctx.sourceEvent?.type !== "refresh";
  if (isPoll && (document.hidden || typing)) event.preventDefault();
});

// A passkey is made and used by the browser; the API says what for.
const failed = (error) => {
  const fault = document.querySelector(".door .fault");
  if (fault) fault.textContent = error.message;
  else notice(error.message);
};

document.addEventListener("click", async (event) => {
  try {
    if (event.target.id === "add-passkey") {
      const { public_key: wanted } = await call("POST /v1/auth/passkeys/options");
      const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(wanted);
      const credential = await navigator.credentials.create({ publicKey });
      await call("POST /v1/auth/passkeys", { credential: credential.toJSON() });
      notice("The passkey is added.");
      refresh();
    } else if (event.target.id === "use-passkey") {
      const { public_key: wanted, challenge } = await call("POST /v1/auth/passkeys/login/options", {});
      const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(wanted);
      const credential = await navigator.credentials.get({ publicKey });
      await call("POST /v1/auth/passkeys/login", { credential: credential.toJSON(), challenge, transport: "cookie" });
      location.assign(event.target.dataset.then);
    } else if (event.target.dataset.bulk) {
      const wanted = JSON.parse(event.target.dataset.bulk);
      const { matched } = await call("POST /v1/admin/jobs/bulk", { ...wanted, dry_run: true });
      // The API counts no further.
      const number = matched < 100_000 ? matched.toLocaleString("en") : "100,000 or more";
      if (!matched || !confirm(`${event.target.textContent}: ${number} jobs?`)) return;
      const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("");
      const { job } = await call("POST /v1/admin/jobs/bulk", wanted, { "Idempotency-Key": key });
      location.assign(`/console/admin/jobs/${job.id}`);
    }
  } catch (error) { failed(error); }
});

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const INKS = ["--main", "--warn", "--bad"];

function draw(place) {
  const [times, ...series] = JSON.parse(place.dataset.chart);
  const names = JSON.parse(place.dataset.names);
  place.textContent = "";
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--soft"), grid, ticks: grid };
  new uPlot({
    width: place.clientWidth - 16, height: series.length > 1 ? 200 : 170,
    legend: { show: series.length > 1 }, cursor: { y: false },
    scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } },
    axes: [axis, { ...axis, size: 52 }],
    series: [{}, ...names.map((label, at) => ({
      label, stroke: colour(INKS[at]), width: 2, fill: series.length > 1 ? undefined : colour("--busy-ground"),
    }))],
  }, [times, ...series], place);
}

const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);
document.addEventListener("DOMContentLoaded", drawAll);
document.addEventListener("htmx:after:swap", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
let resizing;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 150); });
