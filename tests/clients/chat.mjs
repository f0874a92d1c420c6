// The AI SDK's `useChat` with its default transport, as an application uses it, against a gateway.
//
//     node chat.mjs SCENARIO URL MODEL
//
// MODEL is the model server's URL: what it holds (tests/model_server.py) goes on when a scenario says so,
// so that nothing here depends on how fast anybody is. Ends with status 0 when everything was as it has to be.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createElement } from "react";
import { create } from "react-test-renderer";

const [scenario, url, model] = process.argv.slice(2);
const WITHIN_MS = 30_000;

console.error = (...words) => {
  if (!String(words[0]).includes("react-test-renderer is deprecated")) throw new Error(words.join(" "));
};

/** A component that uses the hook; `now()` is what the hook last returned, `answered` the statuses of
 * the answers that its transport got. */
async function mounted(options) {
  let latest;
  const answered = [];
  const transport = new DefaultChatTransport({
    api: `${url}/api/chat`,
    fetch: async (...request) => {
      const answer = await fetch(...request);
      answered.push(answer.status);
      return answer;
    },
  });
  const Component = () => {
    latest = useChat({ transport, ...options });
    return null;
  };
  const root = create(createElement(Component));
  await until(() => latest);
  return { now: () => latest, answered, leave: () => root.unmount() };
}

async function until(holds, what = "it") {
  const deadline = Date.now() + WITHIN_MS;
  for (;;) {
    const found = await holds();
    if (found) return found;
    assert.ok(Date.now() < deadline, `${what} did not come to be`);
    await sleep(10);
  }
}

const textOf = (message) => message.parts.filter((p) => p.type === "text").map((p) => p.text).join("");
const said = (count) => Array.from({ length: count }, (_, number) => `${number} `).join("");
const get = async (path) => (await fetch(`${url}${path}`)).json();
const post = (path) => fetch(`${url}${path}`, { method: "POST" });

const go = (name) => fetch(`${model}/go/${name}`, { method: "POST" });

const newId = async () => (await (await post("/api/chat")).json()).chatId;

async function history(id) {
  const { messages } = await get(`/api/chat/${encodeURIComponent(id)}/history`);
  return messages.map((each) => ({ id: each.id, role: each.role, parts: JSON.parse(each.content) }));
}

const ready = (chat) => until(() => chat.now().status === "ready", "ready");
const shows = (chat, text) => until(() => answer(chat) && textOf(answer(chat)) === text, text);
const answer = (chat) => chat.now().messages.findLast((each) => each.role === "assistant");

const scenarios = {
  async streams() {
    const id = await newId();
    const finished = [];
    const chat = await mounted({ id, onFinish: (told) => finished.push(told) });
    chat.now().sendMessage({ text: `say 60 hold 20 ${id}` });
    await shows(chat, said(20));
    assert.equal(chat.now().status, "streaming");
    await go(id);
    await ready(chat);
    assert.equal(textOf(answer(chat)), said(60));
    assert.equal(finished[0].finishReason, "stop");
    assert.equal(chat.now().error, undefined);

    chat.now().sendMessage({ text: "say 3" });
    await until(() => chat.now().messages.length === 4 && chat.now().status === "ready", "the second");
    assert.equal(textOf(answer(chat)), said(3));
    const kept = await history(id);
    assert.deepEqual(kept.map((each) => [each.id, each.role]), chat.now().messages.map((each) => [each.id, each.role]));
    assert.deepEqual(kept.map(textOf), chat.now().messages.map(textOf));
  },

  async begins_by_itself() {
    const chat = await mounted({}); // the hook makes up an id
    chat.now().sendMessage({ text: "hello" });
    await until(() => answer(chat) && chat.now().status === "ready", "the answer");
    assert.deepEqual((await history(chat.now().id)).map(textOf), ["hello", "hello"]);
  },

  async stops() {
    const id = await newId();
    const chat = await mounted({ id });
    chat.now().sendMessage({ text: "stall after 5" });
    await shows(chat, said(5));
    await post(`/api/chat/${id}/stop`);
    await ready(chat);
    assert.equal(textOf(answer(chat)), said(5));
    assert.deepEqual((await history(id)).map(textOf), ["stall after 5", said(5)]);
  },

  async stops_listening_while_the_answer_goes_on() {
    const id = await newId();
    const chat = await mounted({ id });
    chat.now().sendMessage({ text: `say 40 hold 10 ${id}` });
    await shows(chat, said(10));
    await chat.now().stop();
    await ready(chat);
    await go(id);
    await until(async () => (await history(id)).length === 2, "the whole answer");
    assert.equal(textOf((await history(id))[1]), said(40));
    assert.equal(textOf(answer(chat)), said(10));
  },

  async resumes() {
    const id = await newId();
    const first = await mounted({ id });
    const text = `say 120 hold 40 ${id}`;
    first.now().sendMessage({ text });
    await shows(first, said(40));
    await first.now().stop(); // as a page that is reloaded does
    first.leave();

    const second = await mounted({ id, messages: await history(id), resume: true });
    await shows(second, said(40));
    await go(id);
    await ready(second);
    assert.equal(textOf(answer(second)), said(120));
    assert.deepEqual(second.now().messages.map((each) => each.role), ["user", "assistant"]);

    const third = await mounted({ id, messages: await history(id), resume: true });
    await until(() => third.answered.length === 1, "an answer");
    assert.deepEqual(third.answered, [204]); // nothing to resume
    await ready(third);
    assert.deepEqual(third.now().messages.map(textOf), [text, said(120)]);
  },

  async regenerates() {
    const id = await newId();
    const chat = await mounted({ id });
    chat.now().sendMessage({ text: "say 4" });
    await until(() => answer(chat) && chat.now().status === "ready", "the answer");
    const before = answer(chat).id;
    chat.now().regenerate();
    await until(() => answer(chat) && answer(chat).id !== before && chat.now().status === "ready", "another");
    assert.deepEqual((await history(id)).map((each) => each.id), chat.now().messages.map((each) => each.id));
    assert.deepEqual((await history(id)).map(textOf), ["say 4", said(4)]);
  },

  async tells_errors() {
    const id = await newId();
    const chat = await mounted({ id });
    chat.now().sendMessage({ text: "break after 2" });
    await until(() => chat.now().status === "error", "an error");
    assert.match(chat.now().error.message, /the connection to the model failed/);

    const nowhere = await mounted({ id, transport: new DefaultChatTransport({ api: `${url}/api/chat/none` }) });
    nowhere.now().sendMessage({ text: "hello" });
    await until(() => nowhere.now().status === "error", "an error");
    assert.match(nowhere.now().error.message, /Chat not found/);
  },

  async lists() {
    const one = await newId();
    const other = await newId();
    const chat = await mounted({ id: one });
    chat.now().sendMessage({ text: "say 1" });
    await until(() => answer(chat) && chat.now().status === "ready", "the answer");
    await until(async () => {
      const { chats } = await get("/api/chat");
      const mine = chats.filter(({ id }) => id === one || id === other).map(({ id, title }) => [id, title]);
      return JSON.stringify(mine) === JSON.stringify([[one, "say 1"], [other, null]]);
    }, "the list");
    await fetch(`${url}/api/chat/${one}`, { method: "DELETE" });
    await until(async () => (await get("/api/chat")).chats.every(({ id }) => id !== one), "the deletion");
  },
};

assert.ok(scenarios[scenario], `the scenarios are ${Object.keys(scenarios)}`);
await scenarios[scenario]();
process.exit(0);
