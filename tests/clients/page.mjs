// The page at `/` in a real Chromium, driven by playwright-core.
//
//     node page.mjs SCENARIO URL MODEL CHROMIUM [KEY]
//
// MODEL is the model server's URL: what it holds (tests/model_server.py) goes on when a scenario says so,
// so that nothing here depends on how fast anybody is. Ends with status 0 when everything was as it has to be. What this program cannot do by itself it
// asks for with a line on standard output, and waits for a line on standard input.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [scenario, url, model, executablePath, apiKey] = process.argv.slice(2);
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const said = (count) => Array.from({ length: count }, (_, number) => `${number} `).join("");

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function please(what) {
  console.log(what);
  await lines.next();
}

const browser = await chromium.launch({ executablePath, args: FLAGS });
const complaints = [];

async function tab(options = {}) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`)) complaints.push(`from elsewhere: ${request.url()}`);
  });
  return page;
}

async function say(page, text) {
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
}

const go = () => fetch(`${model}/go/${scenario}`, { method: "POST" });
const answers = (page) => page.locator(".message.assistant .said");
const lastAnswer = (page) => answers(page).last().textContent();
const streaming = (page, text) =>
  page.waitForFunction((part) => document.querySelector(".message.streaming .said")?.textContent === part, text);
const finished = (page, text) =>
  page.waitForFunction((whole) => {
    const found = [...document.querySelectorAll(".message.assistant:not(.streaming) .said")];
    return found.at(-1)?.textContent === whole && !document.querySelector(".streaming");
  }, text);

const LIST = "/api/chat?limit=50";
/** Does something that brings an answer with the list, and returns once the page has taken that in. */
async function listed(page, bring) {
  const answer = page.waitForResponse(`${url}${LIST}`);
  await bring();
  await (await answer).finished();
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
}

const scenarios = {
  async sends_and_streams() {
    const page = await tab();
    await page.goto(url);
    await say(page, `say 40 hold 10 ${scenario}`);
    await streaming(page, said(10));
    assert.match(page.url(), /\?chat=.+/);
    await go();
    await finished(page, said(40));
    await page.locator("#chats a[aria-current=page]", { hasText: "say 40" }).waitFor();
    assert.equal(await page.title(), "say 40 hold 10 sends_and_streams – Conversation Ledger");
  },

  async reloads_in_mid_answer() {
    const page = await tab();
    await page.goto(url);
    await say(page, `say 150 hold 50 ${scenario}`);
    await streaming(page, said(50));
    await page.reload();
    await streaming(page, said(50));
    await go();
    await finished(page, said(150));
    await page.reload();
    await finished(page, said(150));
    assert.equal(await page.locator(".message").count(), 2);
  },

  async two_tabs_agree() {
    const one = await tab();
    await one.goto(url);
    await say(one, "say 10");
    await finished(one, said(10));
    const other = await tab();
    await other.goto(one.url());
    await finished(other, said(10));
    const prompt = `say 80 hold 30 ${scenario}`;
    await say(other, prompt);
    await Promise.all([streaming(one, said(30)), streaming(other, said(30))]);
    await go();
    await Promise.all([finished(one, said(80)), finished(other, said(80))]);
    const texts = (page) => page.locator(".message .said").allTextContents();
    assert.deepEqual(await texts(one), await texts(other));
    assert.deepEqual(await texts(one), ["say 10", said(10), prompt, said(80)]);
  },

  async stops_and_goes_on_by_keyboard() {
    const page = await tab();
    await page.goto(url);
    await page.keyboard.type("stall after 6"); // the field has the focus from the start
    await page.keyboard.press("Enter");
    await streaming(page, said(6));
    await page.keyboard.press("Escape");
    await finished(page, said(6));
    await page.keyboard.type("say 2");
    await page.keyboard.press("Enter");
    await finished(page, said(2));
    await page.keyboard.press("Shift+Tab"); // to the messages, then to the list and through it
    assert.equal(await page.evaluate(() => document.activeElement.id), "scroller");
    await page.waitForFunction(() => document.querySelector("#chats a")?.textContent.includes("stall after 6"));
    await page.locator("#find").focus(); // only now: the list follows the ledger by some milliseconds
    await page.keyboard.press("Tab");
    assert.match(await page.evaluate(() => document.activeElement.textContent), /stall after 6/);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter"); // delete …
    await page.locator("#deleting[open]").waitFor();
    await page.keyboard.press("Escape"); // … rather not
    await page.keyboard.press("Enter");
    await page.locator("#deleting[open]").waitFor();
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => location.search === "");
    await page.getByText("What would you like to talk about?").waitFor();
  },

  async keeps_a_deleted_chat_out_of_the_list() {
    const page = await tab();
    await page.goto(url);
    await say(page, "say 1");
    await finished(page, said(1));
    const mine = page.locator(`#chats li[data-id="${new URL(page.url()).searchParams.get("chat")}"]`);
    await mine.getByText("say 1").first().waitFor();
    const before = await (await page.request.get(`${url}${LIST}`)).body();
    await page.route(`${url}${LIST}`, (route) => route.fulfill({ body: before, contentType: "application/json" }));
    let answered;
    const gone = new Promise((resolve) => (answered = resolve));
    await page.route(`${url}/api/chat/*`, async (route) => {
      if (route.request().method() !== "DELETE") return route.continue();
      const answer = await route.fetch();
      await gone; // it is heard of before it is answered
      await route.fulfill({ response: answer });
    });
    await mine.getByText("Delete").click();
    await page.locator("#deleting[open] .danger").click();
    await page.waitForFunction(() => location.search === "");
    await page.getByText("What would you like to talk about?").waitFor();
    answered();
    await listed(page, () => page.evaluate(() => dispatchEvent(new Event("online"))));
    assert.equal(await mine.count(), 0);
  },

  async shows_the_newest_list_whichever_comes_last() {
    const page = await tab();
    let release;
    let first = true;
    const released = new Promise((resolve) => (release = resolve));
    await page.route(`${url}${LIST}`, async (route) => {
      if (!first) return route.continue();
      first = false;
      await released;
      const old = { id: "old", title: "what was", updatedAt: "2026-01-01T00:00:00Z" };
      await route.fulfill({ json: { chats: [old], next: null } });
    });
    await page.goto(url);
    await say(page, "say 3");
    await finished(page, said(3));
    await page.locator("#chats a[aria-current=page]", { hasText: "say 3" }).waitFor();
    await listed(page, release);
    assert.equal(await page.getByText("what was").count(), 0);
    assert.equal(await page.locator("#chats a[aria-current=page]").count(), 1);
  },

  async shows_a_new_chat_in_the_list_however_late_that_is() {
    const page = await tab();
    const before = await (await page.request.get(`${url}${LIST}`)).body();
    let late = 6; // more often than it is asked for anyway
    await page.route(`${url}${LIST}`, (route) =>
      late-- > 0 ? route.fulfill({ body: before, contentType: "application/json" }) : route.continue());
    await page.goto(url);
    await say(page, "say 5");
    await finished(page, said(5));
    await page.locator("#chats a[aria-current=page]", { hasText: "say 5" }).waitFor();
  },

  async says_what_was_said_also_when_another_chat_is_opened() {
    const page = await tab();
    await page.goto(url);
    await say(page, "say 6");
    await finished(page, said(6));
    await page.locator("#chats a[aria-current=page]", { hasText: "say 6" }).waitFor();
    await page.click("#new");
    let made;
    let release;
    const released = new Promise((resolve) => (release = resolve));
    await page.route(`${url}/api/chat`, async (route) => {
      const answer = await route.fetch();
      made = (await answer.json()).chatId;
      await released;
      await route.fulfill({ response: answer });
    });
    await say(page, "say 7");
    await page.locator("#chats a", { hasText: "say 6" }).first().click();
    await finished(page, said(6));
    const sent = page.waitForResponse((answer) => answer.url().endsWith(`/api/chat/${made}`));
    release();
    await sent;
    assert.equal(await page.locator(".message.user").textContent(), "Yousay 6");
    await page.goto(`${url}/?chat=${made}`);
    await finished(page, said(7));
  },

  async searches() {
    const page = await tab();
    await page.goto(url);
    const word = `ptarmigan${Date.now()}`;
    await say(page, `Is there a ${word} in Scotland?`);
    await finished(page, `Is there a ${word} in Scotland?`);
    await page.click("#new");
    await page.locator("#empty").waitFor();
    await page.focus("#find");
    const hits = page.locator("#hits a", { hasText: word });
    for (let count = 0; count < 2; ) { // the tables follow the ledger by some milliseconds
      await page.fill("#find", word.slice(0, -1));
      await page.locator("#hits a, #no-hits:not([hidden])").first().waitFor();
      count = await hits.count();
      if (count < 2) await page.fill("#find", "");
    }
    assert.equal(await page.locator("#chats").isVisible(), false);
    assert.equal(await hits.first().locator("mark").textContent(), word.slice(0, -1));
    await hits.last().click();
    await page.locator(".message.user", { hasText: word }).waitFor();
    assert.match(page.url(), /\?chat=.+/);
    await page.focus("#find");
    await page.keyboard.press("Escape");
    await page.locator("#chats a[aria-current=page]").waitFor();
    assert.equal(await page.locator("#hits a").count(), 0);
    await page.fill("#find", `${word}nothing`);
    await page.getByText("Nothing was found").waitFor();
  },

  async reconnects() {
    const page = await tab();
    await page.goto(url);
    await say(page, `say 200 hold 60 ${scenario}`);
    await streaming(page, said(60));
    await please("kill the gateway");
    await page.getByText("Reconnecting").waitFor();
    await go(); // it is written while nobody watches
    await please("start it again");
    await finished(page, said(200));
    await page.waitForFunction(() => document.querySelector("#connection").textContent === "");
  },

  async tells_when_an_answer_breaks_off() {
    const page = await tab();
    await page.goto(url);
    await say(page, "end after 3");
    await page.getByText("The answer broke off").waitFor();
    assert.equal(await lastAnswer(page), said(3));
    await answers(page).evaluate((element) => element.classList.add("old"));
    await page.click("#again");
    await page.locator(".message.assistant .said:not(.old)").waitFor();
    await page.getByText("The answer broke off").waitFor();
    assert.equal(await answers(page).count(), 1);
    await page.reload(); // who comes later is told as well
    await page.getByText("The answer broke off").waitFor();
    assert.equal(await lastAnswer(page), said(3));
    await say(page, "say 2");
    await finished(page, said(2));
    assert.equal(await page.getByText("The answer broke off").isVisible(), false);
  },

  async fits_a_phone() {
    const page = await tab({ viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });
    await page.goto(url);
    await say(page, `a title that is far too long for the screen of a phone ${"x".repeat(120)}`);
    await page.locator(".message.assistant:not(.streaming)").waitFor();
    await page.tap("#show");
    await page.locator("#sidebar.shown #chats a").first().waitFor();
    await page.tap("#hide");
    await page.locator("#sidebar.shown").waitFor({ state: "detached" });
    const { width, inner } = await page.evaluate(() => ({
      width: document.documentElement.scrollWidth,
      inner: innerWidth,
    }));
    assert.ok(width <= inner, `${width} is wider than ${inner}`);
    for (const id of ["#send", "#prompt", "#show"]) {
      const { x, width: wide } = await page.locator(id).boundingBox();
      assert.ok(x >= 0 && x + wide <= 360, `${id} sticks out`);
    }
  },
};

const withKeys = {
  async signs_in() {
    const page = await tab();
    await page.goto(url);
    for (const key of ["not a key", apiKey]) {
      await page.locator("#signing-in[open]").waitFor();
      await page.fill("#key", key);
      await page.keyboard.press("Enter");
    }
    await page.locator("#signing-in[open]").waitFor({ state: "detached" });
    await say(page, `say 60 hold 20 ${scenario}`);
    await streaming(page, said(20));
    await page.reload(); // the key is kept for the tab
    await streaming(page, said(20));
    await go();
    await finished(page, said(60));

    const other = await tab();
    await other.goto(page.url());
    await other.locator("#signing-in[open]").waitFor();
    assert.equal(await other.locator(".message").count(), 0);
  },
};

Object.assign(scenarios, withKeys);
assert.ok(scenarios[scenario], `the scenarios are ${Object.keys(scenarios)}`);
await scenarios[scenario]();
assert.deepEqual(complaints, []);
await browser.close();
process.exit(0);
