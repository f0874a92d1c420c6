// Chats of a Conversation Ledger. What is shown comes over the WebSocket /ws, for every viewer alike;
// what is said goes out as requests to /api/chat, under an id of its own, so that it is said once.

const the = (id) => document.getElementById(id);
const KEY = "convo-key";
const PAUSES_MS = [300, 600, 1200, 2500, 5000];
const LIST_EVERY_MS = 20_000;
const LIST_FOLLOWS_MS = 300; // the ledger, by some milliseconds
const FIND_AFTER_MS = 150;
const UNTITLED = "Untitled chat";

const chat = {
  id: null, // of the conversation that is shown
  socket: null,
  failures: 0,
  retry: 0,
  messages: new Map(), // id -> {role, content, element}, in their order
  running: new Set(), // ids of the answers that are on their way
  sending: null, // a message that is on its way to the ledger
  sought: null, // the id of a message that a search led to
};

// -- requests ---------------------------------------------------------------------------------------

async function request(method, path, body) {
  for (;;) {
    const headers = body ? { "content-type": "application/json" } : {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    if (answer.status === 401) {
      await signIn();
      continue;
    }
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({}));
      throw new Error(told.error || `The ledger answered ${answer.status}.`);
    }
    return answer;
  }
}

let signingIn = null;

function signIn() {
  signingIn ??= new Promise((resolve) => {
    const dialog = the("signing-in");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, the("key").value.trim());
      the("key").value = "";
      signingIn = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return signingIn;
}

// -- the list of chats ------------------------------------------------------------------------------

const list = {
  pages: 1,
  timer: 0,
  asked: 0,
  titles: new Map(),
  expected: null, // the id of a chat that was made here, until the list has it with its title
  deleted: new Set(), // ids of chats that the list may have for a while
};

async function refreshList() {
  clearTimeout(list.timer);
  const asked = (list.asked += 1);
  if (document.querySelector("dialog[open]")) {
    list.timer = setTimeout(refreshList, 500); // what the dialog came from has to be there when it closes
    return;
  }
  let pause = document.hidden ? LIST_EVERY_MS * 6 : LIST_EVERY_MS;
  try {
    const found = [];
    let next = null;
    for (let page = 0; page < list.pages; page += 1) {
      const query = next ? `?limit=50&cursor=${encodeURIComponent(next)}` : "?limit=50";
      const told = await (await request("GET", `/api/chat${query}`)).json();
      found.push(...told.chats);
      next = told.next;
      if (!next) break;
    }
    if (asked !== list.asked) return; // what was asked for later is newer
    if (!document.querySelector("dialog[open]")) {
      showList(found.filter((each) => !list.deleted.has(each.id)), Boolean(next));
    }
    if (list.expected) pause = LIST_FOLLOWS_MS;
  } catch {
    // The conversation says that the connection is lost; the list comes back with it.
    if (asked !== list.asked) return;
  }
  clearTimeout(list.timer);
  list.timer = setTimeout(refreshList, pause);
}

function showList(chats, more) {
  const items = the("chats");
  const focused = document.activeElement;
  const known = new Map([...items.children].map((item) => [item.dataset.id, item]));
  inOrder(items, chats.map((each) => {
    list.titles.set(each.id, each.title || UNTITLED);
    if (each.id === list.expected && each.title) list.expected = null;
    const item = known.get(each.id) ?? listed(each.id);
    name(item, each);
    return item;
  }));
  if (focused !== document.activeElement && items.contains(focused)) focused.focus();
  the("no-chats").hidden = chats.length > 0;
  the("more").hidden = !more;
}

// Only what is out of its place is moved: moving takes the focus away, and is read out again.
function inOrder(parent, elements) {
  const wanted = new Set(elements);
  for (const each of [...parent.children]) if (!wanted.has(each)) each.remove();
  let next = parent.firstChild;
  for (const each of elements) {
    if (each === next) next = next.nextSibling;
    else parent.insertBefore(each, next);
  }
}

function name(item, { id, title, updatedAt }) {
  const [link, remove] = item.children;
  const text = title || UNTITLED;
  const date = new Date(updatedAt);
  if (link.firstChild.textContent !== text) link.firstChild.textContent = text;
  if (link.lastChild.textContent !== ago(date)) link.lastChild.textContent = ago(date);
  link.lastChild.dateTime = updatedAt;
  mark(link, id);
  remove.setAttribute("aria-label", `Delete ${text}`);
}

function mark(link, id) {
  if (id === chat.id) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}

function listed(id) {
  const item = document.createElement("li");
  item.dataset.id = id;
  const link = document.createElement("a");
  link.href = `/?chat=${encodeURIComponent(id)}`;
  const title = document.createElement("span");
  title.className = "name";
  link.append(title, document.createElement("time"));
  link.addEventListener("click", (event) => go(event, id));
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "quiet";
  remove.textContent = "Delete";
  remove.addEventListener("click", () => confirmDelete(id, title.textContent));
  item.append(link, remove);
  return item;
}

function ago(date) {
  const minutes = Math.round((Date.now() - date) / 60_000);
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (minutes < 1) return "just now";
  if (minutes < 60) return format.format(-minutes, "minute");
  if (minutes < 36 * 60) return format.format(-Math.round(minutes / 60), "hour");
  if (minutes < 14 * 1440) return format.format(-Math.round(minutes / 1440), "day");
  return date.toLocaleDateString("en", { dateStyle: "medium" });
}

let doomed = null; // the chat that the dialog asks about
let deleting = null; // the chat whose deletion has not been answered yet

function confirmDelete(id, title) {
  doomed = id;
  the("deleting-text").textContent = `“${title}” will not be shown any more. The ledger keeps its events.`;
  the("deleting").returnValue = "";
  the("deleting").showModal();
}

the("deleting").addEventListener("close", async () => {
  const dialog = the("deleting");
  if (dialog.open || dialog.returnValue !== "delete") return; // open: it asks again by now
  const id = doomed;
  deleting = id;
  try {
    await request("DELETE", `/api/chat/${encodeURIComponent(id)}`);
    list.deleted.add(id);
    if (id === list.expected) list.expected = null;
    for (const item of the("chats").children) if (item.dataset.id === id) item.remove();
    if (id === chat.id) open(null, true);
    refreshList();
  } catch (error) {
    notice(error.message);
  } finally {
    deleting = null;
  }
});

// -- search -----------------------------------------------------------------------------------------

const finding = { asked: 0, timer: 0 };

function find() {
  clearTimeout(finding.timer);
  const asked = (finding.asked += 1);
  const text = the("find").value.trim();
  if (!text) showHits(null);
  else finding.timer = setTimeout(() => search(text, asked), FIND_AFTER_MS);
}

async function search(text, asked) {
  const query = /[\p{L}\p{N}]$/u.test(text) ? `${text}*` : text; // the last word may not be finished
  try {
    const answer = await request("GET", `/api/chat/search?limit=50&q=${encodeURIComponent(query)}`);
    const { hits } = await answer.json();
    if (asked === finding.asked) showHits(hits);
  } catch (error) {
    if (asked === finding.asked) notice(`Nothing could be looked up: ${error.message}`);
  }
}

function showHits(hits) {
  the("sidebar").classList.toggle("finding", Boolean(hits));
  the("hits").replaceChildren(...(hits ?? []).map(found));
  the("hits").scrollTop = 0;
  the("no-hits").hidden = !hits || hits.length > 0;
}

function found({ chatId, messageId, role, createdAt, snippet }) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  const title = document.createElement("span");
  const where = document.createElement("time");
  const text = document.createElement("span");
  title.className = "name";
  title.textContent = list.titles.get(chatId) ?? "An older chat";
  where.dateTime = createdAt;
  where.textContent = `${NAMES[role] || role}, ${ago(new Date(createdAt))}`;
  text.className = "snippet";
  text.dir = "auto";
  snippet.split(/[⟦⟧]/).forEach((part, index) => {
    const piece = index % 2 ? document.createElement("mark") : document.createElement("span");
    piece.textContent = part;
    text.append(piece);
  });
  link.href = `/?chat=${encodeURIComponent(chatId)}`;
  link.append(title, text, where);
  link.addEventListener("click", (event) => {
    go(event, chatId);
    if (event.defaultPrevented) chat.sought = messageId;
  });
  item.append(link);
  return item;
}

// -- one conversation -------------------------------------------------------------------------------

function go(event, id) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button > 0) return;
  event.preventDefault();
  open(id, true);
  sidebar(false);
  the("prompt").focus();
}

function open(id, push) {
  if (push) history.pushState(null, "", id ? `/?chat=${encodeURIComponent(id)}` : "/");
  chat.id = id;
  chat.sending = null;
  chat.sought = null;
  chat.running.clear();
  chat.messages.clear();
  the("messages").replaceChildren();
  notice(null);
  setTitle(null);
  for (const item of the("chats").children) mark(item.firstChild, item.dataset.id);
  disconnect();
  if (id) connect();
  else empty(true);
  show();
}

function setTitle(title) {
  const name = title || (chat.id ? UNTITLED : "New chat");
  the("title").textContent = name;
  document.title = `${name} – Conversation Ledger`;
}

function empty(is, title = "What would you like to talk about?", text = null) {
  the("empty").hidden = !is;
  if (!is) return;
  the("empty-title").textContent = title;
  the("empty-text").hidden = text === "";
}

function disconnect() {
  clearTimeout(chat.retry);
  const socket = chat.socket;
  chat.socket = null;
  socket?.close();
  connection("");
}

function connect() {
  clearTimeout(chat.retry);
  const url = new URL(`/ws?conversationId=${encodeURIComponent(chat.id)}`, location);
  url.protocol = url.protocol.replace("http", "ws");
  const key = sessionStorage.getItem(KEY);
  const socket = key ? new WebSocket(url, ["convo", `bearer.${base64url(key)}`]) : new WebSocket(url);
  chat.socket = socket;
  socket.addEventListener("message", ({ data }) => {
    if (socket === chat.socket) heard(JSON.parse(data));
  });
  socket.addEventListener("close", () => {
    if (socket !== chat.socket) return;
    chat.socket = null;
    connection("Reconnecting…");
    const pause = PAUSES_MS[Math.min(chat.failures, PAUSES_MS.length - 1)];
    chat.failures += 1;
    chat.retry = setTimeout(connect, pause * (0.5 + Math.random() / 2));
  });
}

function connection(text) {
  if (the("connection").textContent !== text) the("connection").textContent = text;
}

const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text)))
    .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

function heard(frame) {
  switch (frame.type) {
    case "catchup":
      chat.failures = 0;
      connection("");
      caughtUp(frame);
      break;
    case "conversation_created":
      chat.running.add(frame.messageId);
      notice(null);
      message(frame.messageId, "assistant", "");
      break;
    case "text": {
      const known = chat.messages.get(frame.messageId);
      if (known) message(frame.messageId, known.role, known.content + frame.content);
      break;
    }
    case "done":
      ended(frame.messageId);
      break;
    case "error":
      if (frame.messageId) ended(frame.messageId);
      brokeOff(frame.message);
      break;
  }
  show();
}

function caughtUp({ conversation: told, messages: all }) {
  const conversation = told && !["deleted", "erased"].includes(told.status) ? told : null;
  if (!conversation && chat.id === deleting) return open(null, true); // heard of before it is answered
  const messages = conversation ? all : [];
  const known = chat.messages;
  chat.messages = new Map();
  chat.running.clear();
  for (const each of messages) {
    if (each.streaming) chat.running.add(each.id);
    if (chat.sending?.id === each.id) chat.sending = null;
    if (each.role === "assistant" && !each.content && !each.streaming) continue;
    if (known.has(each.id)) chat.messages.set(each.id, known.get(each.id));
    message(each.id, each.role, each.content);
  }
  const sending = known.get(chat.sending?.id);
  if (sending) chat.messages.set(chat.sending.id, sending);
  inOrder(the("messages"), [...chat.messages.values()].map(({ element }) => element));
  const last = messages.at(-1);
  if (last?.error && !chat.sending) brokeOff(last.error);
  else if (last?.role === "assistant" && !the("again").hidden) notice(null); // it was answered anew
  setTitle(conversation ? conversation.title : "No such chat");
  if (!conversation) empty(true, "This chat is not there any more, or it is not yours.", "");
  else empty(messages.length === 0 && !chat.sending);
}

function ended(id) {
  chat.running.delete(id);
  if (!chat.messages.get(id)?.content) forget(id);
  setTimeout(refreshList, LIST_FOLLOWS_MS);
}

function forget(id) {
  chat.messages.get(id)?.element.remove();
  chat.messages.delete(id);
}

const NAMES = { user: "You", assistant: "Assistant", system: "System", developer: "Developer", tool: "Tool" };

function message(id, role, content) {
  let known = chat.messages.get(id);
  if (!known) {
    const element = document.createElement("li");
    const by = document.createElement("p");
    const said = document.createElement("div");
    by.className = "by";
    by.textContent = NAMES[role] || role;
    said.className = "said";
    said.dir = "auto";
    said.append("");
    element.append(by, said);
    the("messages").append(element);
    known = { role, content: "", element };
    chat.messages.set(id, known);
  }
  const said = known.element.lastChild;
  if (content.startsWith(known.content)) said.firstChild.appendData(content.slice(known.content.length));
  else said.textContent = content || "\u200b";
  known.content = content;
  empty(false);
}

const frame = { asked: false };

function show() {
  if (frame.asked) return;
  frame.asked = true;
  requestAnimationFrame(() => {
    frame.asked = false;
    for (const [id, { role, element }] of chat.messages) {
      const state = chat.running.has(id) ? " streaming" : chat.sending?.id === id ? " sending" : "";
      if (element.className !== `message ${role}${state}`) element.className = `message ${role}${state}`;
    }
    const busy = chat.running.size > 0;
    the("messages").setAttribute("aria-busy", String(busy));
    the("stop").hidden = !busy;
    the("send").hidden = busy;
    the("send").disabled = Boolean(chat.sending) || !the("prompt").value.trim();
    const sought = chat.messages.get(chat.sought)?.element;
    if (sought) {
      chat.sought = null;
      following = false;
      sought.scrollIntoView({ block: "center" });
      sought.animate([{ background: "var(--found)" }, {}], 2500);
    }
    if (following) the("scroller").scrollTop = the("scroller").scrollHeight;
  });
}

const brokeOff = (reason) => notice(`The answer broke off: ${reason}.`, true);

let following = true; // the end of the conversation, until somebody scrolls up

the("scroller").addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = the("scroller");
  following = scrollHeight - scrollTop - clientHeight < 48;
});

function notice(text, retry = false) {
  the("notice").hidden = !text;
  the("notice-text").textContent = text || "";
  the("again").hidden = !retry;
}

// -- saying something -------------------------------------------------------------------------------

async function say() {
  const text = the("prompt").value.trim();
  if (!text || chat.sending || chat.running.size) return;
  const said = { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), text };
  let { id } = chat;
  the("prompt").value = "";
  following = true;
  chat.sending = said;
  notice(null);
  message(said.id, "user", text);
  show();
  try {
    if (!id) {
      id = (await (await request("POST", "/api/chat")).json()).chatId;
      list.expected = id;
      if (chat.sending === said) { // still shown; it is sent also when another chat is
        chat.id = id;
        history.pushState(null, "", `/?chat=${encodeURIComponent(id)}`);
        connect();
      }
    }
    await post(id, said, "submit-message");
    if (list.expected) refreshList();
    if (chat.sending === said) chat.sending = null;
  } catch (error) {
    if (id === list.expected) list.expected = null;
    if (chat.sending !== said) return;
    chat.sending = null;
    forget(said.id);
    the("prompt").value ||= text;
    empty(chat.messages.size === 0);
    notice(`That was not sent: ${error.message}`);
  }
  show();
}

async function post(chatId, { id, text }, trigger) {
  const messages = [{ id, role: "user", parts: [{ type: "text", text }] }];
  const path = `/api/chat/${encodeURIComponent(chatId)}`;
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await request("POST", path, { messages, trigger });
      await answer.body?.cancel(); // the answer is heard over the WebSocket, and goes on
      return;
    } catch (error) {
      if (!(error instanceof TypeError) || attempt >= 3) throw error; // not the network's fault
      await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[attempt]));
    }
  }
}

async function again() {
  const last = [...chat.messages].reverse().find(([, each]) => each.role === "user");
  if (!last) return;
  const { id } = chat;
  notice(null);
  try {
    await post(id, { id: last[0], text: last[1].content }, "regenerate-message");
  } catch (error) {
    if (chat.id === id) notice(`That was not sent: ${error.message}`, true);
  }
}

async function stop() {
  if (!chat.running.size) return;
  const { id } = chat;
  the("stop").disabled = true;
  try {
    await request("POST", `/api/chat/${encodeURIComponent(id)}/stop`);
  } catch (error) {
    if (chat.id === id) notice(`The answer goes on: ${error.message}`);
  }
  the("stop").disabled = false;
  if ([the("stop"), document.body, null].includes(document.activeElement)) the("prompt").focus();
}

// -- what people do ---------------------------------------------------------------------------------

the("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
  the("prompt").focus();
});
the("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say();
  }
});
the("prompt").addEventListener("input", show);
the("find").addEventListener("input", find);
the("find").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !the("find").value) return;
  event.preventDefault();
  event.stopPropagation(); // it stops no answer
  the("find").value = "";
  find();
});
the("stop").addEventListener("click", stop);
the("again").addEventListener("click", again);
the("new").addEventListener("click", (event) => go(event, null));
the("more").addEventListener("click", () => {
  list.pages += 1;
  refreshList();
});

function sidebar(shown) {
  the("sidebar").classList.toggle("shown", shown);
  the("shade").hidden = !shown;
  the("show").setAttribute("aria-expanded", String(shown));
}
the("show").addEventListener("click", () => {
  sidebar(true);
  the("new").focus();
});
for (const id of ["hide", "shade"]) {
  the(id).addEventListener("click", () => {
    sidebar(false);
    the("show").focus();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (the("sidebar").classList.contains("shown")) {
    sidebar(false);
    the("show").focus();
  } else stop();
});

function comeBack() {
  if (document.hidden) return;
  refreshList();
  if (chat.id && !chat.socket) {
    chat.failures = 0;
    connect();
  }
}
document.addEventListener("visibilitychange", comeBack);
addEventListener("online", comeBack);
addEventListener("popstate", () => open(new URLSearchParams(location.search).get("chat"), false));

open(new URLSearchParams(location.search).get("chat"), false);
refreshList();
the("prompt").focus({ preventScroll: true });
