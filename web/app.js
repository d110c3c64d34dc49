/** The page: one person, whoever they write to, and what became of each message. Text is never HTML. */
import { Texto } from "/texto.js";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const $ = (id) => document.getElementById(id);
/** Credentials that were typed here: in no address, and gone with the page. */
let token = null;
const texto = new Texto(undefined, { credentials: () => token });
let lastId = null;

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  waiting: "Reconnecting…",
  closed: "Disconnected",
};

texto.onstate = ({ state, clientId, missing, reason, description }) => {
  lastId ??= clientId; // Of the page as it was before it was loaded anew.
  // Somebody who is here already need not know how it is done.
  const shown = state === "connecting" && lastId !== null ? "waiting" : state;
  $("state").textContent = STATES[shown];
  $("state").dataset.state = shown;
  const isLockedOut = reason === "credentials";
  $("access").hidden = !isLockedOut;
  $("anew").hidden = state !== "closed" || isLockedOut;
  // While it reconnects, a message waits, and the id stays.
  $("copy").disabled = $("share").disabled = $("send").disabled = clientId === null;
  if (reason === "elsewhere") notify("You go on in another tab or window.");
  if (isLockedOut) askForToken(description);
  if (state !== "connected") return;
  $("own-id").textContent = clientId;
  if (lastId !== null && lastId !== clientId) {
    notify("You were connected anew and have a new id: give it to those who write to you.");
  } else if (missing) {
    notify("You were away for too long: some messages may be missing.");
  }
  lastId = clientId;
};

function askForToken(flaw) {
  $("access-why").textContent = token
    ? `The server says: ${flaw}. Paste another token.`
    : "This server demands credentials: paste the token (a JWT) that you were given. It is shown to the server, and kept nowhere.";
  $("token").focus();
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  texto.connect();
});

function notify(text) {
  $("notice").textContent = text;
  $("notice").classList.add("news");
}

texto.onreceive = ({ senderId, text }) => {
  addMessage({ peer: senderId, text, mine: false });
  remember(senderId);
  if ($("recipient").value.trim() === "") setRecipient(senderId);
};

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Messages that the page shows at a time. */
const MOST_MESSAGES = 500;
/** People whom it offers to write to, those who came last. */
const MOST_PEERS = 50;
let removed = 0;

function addMessage({ peer, text, mine }) {
  const item = element("li", mine ? "message mine" : "message");
  const meta = element("p", "meta");
  const who = element("button", "peer", peer.slice(0, 8));
  who.type = "button";
  who.title = peer;
  who.setAttribute("aria-label", `Write to ${peer}`);
  who.onclick = () => {
    setRecipient(peer);
    $("text").focus();
  };
  const status = element("span", "status");
  meta.append(mine ? "to " : "from ", who, element("time", "", new Date().toLocaleTimeString()), status);
  item.append(element("p", "text", text), meta);
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  log.append(item);
  // A page that is left open for a day must not keep the whole of it.
  while (log.childElementCount > MOST_MESSAGES) {
    log.firstElementChild.remove();
    removed += 1;
  }
  $("removed").hidden = removed === 0;
  $("removed").textContent = `${removed} older ${removed === 1 ? "message is" : "messages are"} shown no more`;
  $("empty").hidden = true;
  if (mine || atEnd) log.scrollTop = log.scrollHeight;
  return { item, status };
}

async function sendMessage(peer, text) {
  const { item, status } = addMessage({ peer, text, mine: true });
  const show = (state, words) => {
    status.dataset.state = state;
    status.textContent = words;
  };
  const attempt = async () => {
    show("sending", "sending…");
    try {
      await texto.send(peer, text);
      show("acked", "delivered");
    } catch (error) {
      show("failed", `not sent: ${error.description} (${error.code})`);
      const again = element("button", "again", "Send again");
      again.type = "button";
      again.onclick = () => {
        again.remove();
        attempt();
      };
      item.append(again);
    }
  };
  await attempt();
}

function setRecipient(id) {
  $("recipient").value = id;
  checkRecipient();
}

/** The recipient's id, or null with a hint that says why not. */
function checkRecipient(final = false) {
  const value = $("recipient").value.trim();
  const valid = UUID.test(value);
  const wrong = final && !valid;
  $("recipient-hint").textContent = wrong ? "That is no id: it looks like 1b4e28ba-2fa1-4d2b-883f-0016d3cca427." : "";
  $("recipient-hint").classList.toggle("bad", wrong);
  $("recipient").setAttribute("aria-invalid", String(wrong));
  return valid ? value.toLowerCase() : null;
}

function remember(peer) {
  const known = Array.from($("recent").children, (option) => option.value);
  if (known.includes(peer)) return;
  const option = element("option");
  option.value = peer;
  $("recent").prepend(option);
  if ($("recent").childElementCount > MOST_PEERS) $("recent").lastElementChild.remove();
}

$("recipient").addEventListener("input", () => checkRecipient());
$("recipient").addEventListener("change", () => checkRecipient($("recipient").value.trim() !== ""));

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const peer = checkRecipient(true);
  const text = $("text").value;
  if (peer === null) {
    $("recipient").focus();
    return;
  }
  if (text.trim() === "" || $("send").disabled) return;
  $("text").value = "";
  grow();
  remember(peer);
  sendMessage(peer, text);
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});

function grow() {
  const area = $("text");
  area.rows = Math.min(6, area.value.split("\n").length);
}
$("text").addEventListener("input", grow);

async function copy(text, button) {
  const words = button.textContent;
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    // Without the clipboard's interface (no https): the old way.
    const area = element("textarea", "hidden");
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : "Select it by hand";
  setTimeout(() => (button.textContent = words), 1500);
}
$("copy").onclick = () => copy(texto.clientId, $("copy"));
$("share").onclick = () => copy(new URL(`/#to=${texto.clientId}`, location.href).href, $("share"));

function readLink() {
  const to = new URLSearchParams(location.hash.slice(1)).get("to");
  if (to && UUID.test(to)) {
    setRecipient(to.toLowerCase());
    $("text").focus();
  }
}
$("anew").onclick = () => texto.connect();
addEventListener("hashchange", readLink);
readLink();
texto.connect();
