// The chat, and the engine every second. What a model says is text: it never becomes HTML.
"use strict";

const at = (id) => document.getElementById(id);
const conversation = [];
let answering = null; // the AbortController of the answer that is coming
let key = sessionStorage.getItem("llmsys-key") || "";

const headers = (more = {}) => (key ? { Authorization: `Bearer ${key}`, ...more } : more);

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

async function errorOf(response) {
  if (response.status === 401) at("key-form").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The chat

function show(role, text) {
  at("empty").hidden = true;
  const said = document.createElement("div");
  said.className = `said ${role}`;
  const who = document.createElement("b");
  who.textContent = role === "user" ? "You" : "Model";
  const what = document.createElement("span");
  what.textContent = text;
  said.append(who, what);
  at("log").append(said);
  at("log").scrollTop = at("log").scrollHeight;
  return what;
}

async function* pieces(response) {
  // The data of server-sent events; one may come in several reads, and several in one.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}

async function ask(text) {
  conversation.push({ role: "user", content: text });
  show("user", text);
  problem("");
  const coming = new AbortController();
  answering = coming;
  at("send").disabled = true;
  at("stop").disabled = false;
  at("log").setAttribute("aria-busy", "true"); // to be read out when it is whole
  const what = show("assistant", "");
  let said = "";
  try {
    const body = { messages: conversation, stream: true, temperature: at("temperature").valueAsNumber, max_tokens: at("most").valueAsNumber };
    const request = { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body), signal: coming.signal };
    const response = await fetch("v1/chat/completions", request);
    if (!response.ok) throw new Error(await errorOf(response));
    let whole = false;
    for await (const data of pieces(response)) {
      if (data === "[DONE]") {
        whole = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      said += chunk.choices[0].delta.content || "";
      what.textContent = said;
      at("log").scrollTop = at("log").scrollHeight;
    }
    if (!whole) throw new Error("the connection ended before the answer did");
  } catch (error) {
    if (error.name !== "AbortError") problem(`The answer failed: ${error.message}`);
  }
  if (answering !== coming) return; // another conversation has begun
  answering = null;
  if (said) {
    conversation.push({ role: "assistant", content: said });
  } else {
    conversation.pop(); // nothing was answered: ask it again
    what.parentElement.previousElementSibling.remove();
    what.parentElement.remove();
    if (!at("text").value) at("text").value = text;
  }
  at("send").disabled = false;
  at("stop").disabled = true;
  at("log").removeAttribute("aria-busy");
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || answering) return;
  at("text").value = "";
  ask(text);
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => {
  answering?.abort();
  at("text").focus();
});
at("new").addEventListener("click", () => {
  answering?.abort();
  answering = null;
  conversation.length = 0;
  at("log").replaceChildren(at("empty"));
  at("empty").hidden = false;
  at("log").removeAttribute("aria-busy");
  at("send").disabled = false;
  at("stop").disabled = true;
  problem("");
  at("text").focus();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  sessionStorage.setItem("llmsys-key", key);
  at("key-form").hidden = true;
  problem("");
  watch();
});

// The engine

const history = [];
let before = null;

const milliseconds = (x) => `${(1000 * x).toPrecision(3)} ms`;
const quantiles = (x) => (x ? `${milliseconds(x.p50)}, ${milliseconds(x.p90)}` : "–");

function draw(now) {
  history.push(now);
  if (history.length > 60) history.shift();
  const highest = Math.max(1, ...history.map((each) => Math.max(each.running, each.waiting)));
  const points = (name) => history.map((each, i) => `${((60 - history.length + i) * 300) / 59},${97 - (94 * each[name]) / highest}`).join(" ");
  at("line-running").setAttribute("points", points("running"));
  at("line-waiting").setAttribute("points", points("waiting"));
  at("highest").textContent = highest;
  at("history").setAttribute("aria-label", `Requests in the last minute: now ${now.running} running and ${now.waiting} waiting, at most ${highest}`);
}

async function watch() {
  try {
    const response = await fetch("engine", { headers: headers() });
    if (!response.ok) throw new Error(await errorOf(response));
    const now = await response.json();
    const time = performance.now() / 1000;
    const number = (x) => x.toLocaleString("en");
    at("model").textContent = now.model;
    at("state").textContent = now.state === "ok" ? "" : `(${now.state})`;
    for (const name of ["running", "waiting", "steps"]) at(name).textContent = number(now[name]);
    at("blocks").textContent = `${number(now.blocks_used)} of ${number(now.blocks)}`;
    at("meter").value = now.blocks_used / now.blocks;
    at("ttft").textContent = quantiles(now.ttft_seconds);
    at("tpot").textContent = quantiles(now.tpot_seconds);
    if (before) {
      const seconds = time - before.time;
      at("pace").textContent = number(Math.round((now.steps - before.steps) / seconds));
      at("speed").textContent = number(Math.round((now.output_tokens - before.output_tokens) / seconds));
    }
    before = { time, ...now };
    draw(now);
  } catch (error) {
    at("state").textContent = `(${error.message})`;
  }
}

watch();
setInterval(() => document.hidden || watch(), 1000);
