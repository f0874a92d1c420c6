// An example of docs/gateway.md as it stands there: in Chromium, or for the AI SDK in a component.
//
//     node examples.mjs FAMILY URL CHROMIUM CODE
//
// Ends with status 0 when it did what the page says of it.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { useChat } from "@ai-sdk/react";
import { chromium } from "playwright-core";
import { createElement } from "react";
import { create } from "react-test-renderer";

const [family, url, executablePath, text] = process.argv.slice(2);
const code = text.replaceAll("localhost:8080", new URL(url).host);

async function inBrowser(code, seen) {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
  const page = await browser.newPage();
  page.on("pageerror", (error) => { throw error; });
  const lines = [];
  page.on("console", (message) => lines.push(message.text()));
  await page.goto(`${url}/docs`);
  await seen(page, (names) => page.evaluate(`(async () => { ${code}\n return { ${names} }; })()`), lines);
  await browser.close();
}

async function until(holds) {
  const deadline = Date.now() + 30_000;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, "it did not come to be");
    await sleep(10);
  }
}

const families = {
  Threads: () => inBrowser(code, async (_, run) => {
    const { messages } = await run("messages");
    assert.deepEqual([messages.at(-1).role, messages.at(-1).content], ["user", "Hello"]);
  }),

  Conversations: () => inBrowser(code, async (_, run, lines) => {
    await run("");
    await until(() => lines.includes("user: Hello, all"));
  }),

  Streams: () => inBrowser(code, async (page, run) => {
    await run("");
    await page.waitForFunction(() => document.body.textContent.endsWith("Tell me a story"));
  }),

  Sessions: () => inBrowser(code, async (_, run) => {
    const { data, metadata } = await run("data, metadata");
    assert.deepEqual([data[0].content, metadata.language], ["Hello", "en"]);
  }),

  // The first line is a component's, the others are what it does once.
  async Chats() {
    const here = globalThis.fetch;
    const resumed = [];
    globalThis.fetch = async (where, how) => {
      const answer = await here(new URL(where, url), how);
      if (String(where).endsWith("/stream")) resumed.push(answer.status);
      return answer;
    };
    const id = code.match(/id: "(.+?)"/)[1];
    const { messages } = await (await fetch(`/api/chat/${id}/history`)).json();
    const earlier = messages.map((m) => ({ id: m.id, role: m.role, parts: JSON.parse(m.content) }));
    const [hook, ...then] = code.trim().split("\n");
    const use = new Function("useChat", "earlier", `${hook}; return { messages, sendMessage, regenerate };`);
    let chat;
    const Component = () => {
      chat = use(useChat, earlier);
      return null;
    };
    console.error = () => {}; // react-test-renderer says that it is deprecated
    create(createElement(Component));
    await until(() => resumed.length === 1); // there is nothing to resume yet, when it looks
    assert.deepEqual(resumed, [204]);
    assert.deepEqual(chat.messages.map((each) => each.id), earlier.map((each) => each.id));
    new Function("sendMessage", "regenerate", then.join("\n"))(chat.sendMessage, chat.regenerate);
    const said = (each) => each.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
    await until(() => chat.messages.length === earlier.length + 2 && said(chat.messages.at(-1)) === "Hello");
  },
};

await families[family]();
process.exit(0);
