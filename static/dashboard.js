// Conveniences only: every page works without this file. No library, no inline handlers.

const DIGITS = /^\d{1,15}$/;
const yen = (amount) => `¥${amount.toLocaleString("en-US")}`;
const typing = (element) => element.closest?.("input, textarea, select, [contenteditable]") != null;
const announce = (text) => { document.getElementById("announce").textContent = text; };

// The keys. A letter is a key only where nothing is typed or composed, and only for who wants them: people who
// speak to their computer press letters without meaning to.
const keys = document.getElementById("keys");
const lettersOn = () => localStorage.getItem("keys") !== "off";
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!lettersOn() || typing(event.target) || keys?.open) return;
  const act = {
    "/": () => { const box = document.getElementById("q"); box?.focus(); box?.select(); return box; },
    "?": () => { keys?.showModal(); return keys; },
    r: () => { const link = document.querySelector('[aria-keyshortcuts="r"]'); link?.click(); return link; },
  }[event.key];
  if (act?.()) event.preventDefault();
});
document.addEventListener("click", (event) => { if (event.target.closest("[data-keys]")) keys.showModal(); });
if (keys) {
  const letters = document.getElementById("keys-on");
  letters.checked = lettersOn();
  letters.addEventListener("change", () => localStorage.setItem("keys", letters.checked ? "on" : "off"));
}

// The last button has keys of its own, which nobody presses by holding Enter a moment too long.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing || event.repeat) return;
  const button = document.querySelector('form.confirm [aria-keyshortcuts="Control+Enter"]');
  if (!button) return;
  event.preventDefault();
  button.form.requestSubmit(button);
});

// Up and down go from the search box through the rows and back.
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.closest("#q, .result-line, [data-rows] a")) return;
  const stops = [document.getElementById("q"), ...document.querySelectorAll("[data-rows] tbody th a")];
  const next = stops[Math.max(0, stops.indexOf(event.target)) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

// A press outside the menu, or Escape, closes it.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector(".menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// The whole id goes to the clipboard, however short it is shown.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  const words = button.querySelector("span");
  button.dataset.words ??= words.textContent;
  words.textContent = button.dataset.done;
  announce(button.dataset.done);
  clearTimeout(button.timer);
  button.timer = setTimeout(() => { words.textContent = button.dataset.words; }, 2000);
});

// A row opens what its link opens, unless text is being selected in it.
document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-href]");
  if (!row || event.target.closest("a, button") || String(getSelection())) return;
  if (event.ctrlKey || event.metaKey) open(row.dataset.href);
  else location.assign(row.dataset.href);
});

// The last button answers to its first press only. The server would not pay twice either.
document.addEventListener("submit", (event) => {
  const button = event.submitter;
  if (event.target.dataset.sent) return event.preventDefault();
  if (!button?.dataset.lock) return;
  const form = event.target;
  form.dataset.sent = "1";
  button.dataset.words = button.textContent;
  button.style.minWidth = `${button.offsetWidth}px`; // no button moves under the pointer
  button.textContent = button.dataset.lock;
  for (const each of form.querySelectorAll("button")) each.setAttribute("aria-disabled", "true");
  const waiting = button.matches(".money-out") ? form.querySelector("[data-waiting]") : null;
  if (waiting) waiting.hidden = false;
  announce([button.dataset.lock, waiting?.textContent ?? ""].join(" "));
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const form of document.querySelectorAll("[data-sent]")) {
    delete form.dataset.sent;
    const button = form.querySelector("[data-words]");
    button.textContent = button.dataset.words;
    button.style.minWidth = "";
    delete button.dataset.words;
    for (const each of form.querySelectorAll("button")) each.removeAttribute("aria-disabled");
    const waiting = form.querySelector("[data-waiting]");
    if (waiting) waiting.hidden = true;
  }
});

// The confirmation was posted for. Reload and Back shall draw the form again, not ask to post it again.
if (document.querySelector("form.confirm")) history.replaceState(null, "", location.href);

function refundForm(form) {
  const amount = form.elements.amount;
  const remaining = form.querySelector("[data-remaining]");
  const remainingOfAll = form.querySelector("[data-remaining-all]"); // of an order with several payments
  const all = form.querySelector("[data-all]");
  const error = document.getElementById("id_amount_error");
  let judged = error.textContent; // what the server said of the amount, until another is typed

  const refundable = () => {
    const chosen = form.querySelector("[name=payment]:checked")?.dataset.refundable;
    const text = chosen ?? form.dataset.refundable;
    return DIGITS.test(text) ? Number(text) : null;
  };
  const typed = () => {
    const text = amount.value.normalize("NFKC").replace(/[,、\s¥円]/g, "");
    return DIGITS.test(text) ? Number(text) : null;
  };
  const show = () => {
    const left = refundable();
    const wanted = typed();
    const over = left !== null && wanted !== null && wanted > left;
    const fits = left !== null && wanted !== null && !over;
    remaining.textContent = fits ? yen(left - wanted) : "–";
    if (remainingOfAll) remainingOfAll.textContent = fits ? yen(Number(form.dataset.refundableAll) - wanted) : "–";
    const wrong = judged || (over ? form.dataset.over : "");
    if (wrong && wrong !== error.textContent) announce(wrong);
    error.textContent = wrong;
    error.hidden = !wrong;
    if (wrong) amount.setAttribute("aria-invalid", "true");
    else amount.removeAttribute("aria-invalid");
    for (const shown of form.querySelectorAll("[data-refundable-shown]")) shown.textContent = left === null ? "–" : yen(left);
  };

  const again = () => { judged = ""; show(); };
  amount.addEventListener("input", (event) => { if (!event.isComposing) again(); });
  amount.addEventListener("compositionend", again);
  for (const payment of form.querySelectorAll("[name=payment]")) payment.addEventListener("change", again);
  all.addEventListener("click", (event) => {
    const left = refundable();
    if (left === null) return; // no payment chosen yet: the server says so
    event.preventDefault();
    amount.value = left.toLocaleString("en-US");
    again();
    amount.focus();
  });
  show();
}

// Characters as the server counts them: code points.
function counter(input) {
  const limit = Number(input.dataset.count);
  const output = input.form.querySelector(`output[for="${input.id}"]`);
  const show = () => {
    const length = Array.from(input.value.trim()).length;
    output.textContent = `${length} / ${limit}`;
    output.classList.toggle("error", length > limit);
  };
  input.addEventListener("input", show);
  output.hidden = false;
  show();
}

// A refund's page renews itself until the refund is settled; it is redrawn only when it says something new.
function renew() {
  const shown = document.querySelector("[data-renew]");
  if (!shown) return;
  setTimeout(async () => {
    if (document.hidden) return document.addEventListener("visibilitychange", renew, { once: true });
    try {
      const address = new URL(location.href);
      address.searchParams.set("renew", "1"); // whatever else it says names the part that is shown
      const answer = await fetch(address, { redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload(); // signed out
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector(".refund");
      const changed = fresh.dataset.state !== shown.dataset.state;
      if (changed && "reload" in shown.dataset) return location.reload(); // what can be done now is outside of it
      if (words(fresh) !== shown.words) {
        const focused = shown.contains(document.activeElement);
        document.title = page.title;
        shown.replaceWith(fresh);
        ready(fresh.parentElement);
        if (focused) document.getElementById("main").focus();
      }
      redraw(document.querySelector(".bulk-lines"), page.querySelector(".bulk-lines"));
      if (changed) {
        fresh.classList.add("is-new");
        announce(fresh.querySelector("[data-announce]").textContent);
      }
    } catch {
      // The network is away for a moment: the next turn asks again.
    }
    renew();
  }, Number(shown.dataset.renew) * 1000);
}

// Of the lines of a file, what has changed alone is drawn anew: nobody loses what they select or are about to press.
function redraw(shown, fresh) {
  if (!shown || !fresh) return;
  const [before, now] = [shown, fresh].map((lines) => [...lines.querySelectorAll(".tabs, tbody tr, .paging")]);
  if (before.length !== now.length) return shown.replaceChildren(...fresh.childNodes);
  for (const [place, each] of before.entries()) {
    if (each.isEqualNode(now[place])) continue;
    const focused = each.contains(document.activeElement) && document.activeElement.getAttribute("href");
    each.replaceWith(now[place]);
    if (focused) [...now[place].querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
  }
}

// Search as you type: only what has rested for half a second, and never what an input method is still composing. Each is
// a search like any other, on the trail and counted; so what is shown already is not asked for again, a whole id is left
// to Enter, and where the server says that it is too often, this stops. The box itself is never touched.
// See docs/decisions/0006-search-is-posted.md.
const REST = 500; // milliseconds
function searchAsTyped(box) {
  const found = document.getElementById("found");
  if (!found) return;
  let shown = box.value.trim();
  let timer, asked;

  const draw = (page, address, text) => {
    if (box.value.trim() !== text || document.activeElement !== box) return; // somebody went on
    if (found.matches(":hover")) return found.addEventListener("pointerleave", () => draw(page, address, text), { once: true });
    const fresh = page.getElementById("found");
    found.replaceChildren(...fresh.childNodes);
    found.dataset.said = fresh.dataset.said;
    for (const line of found.querySelectorAll("[data-focus]")) delete line.dataset.focus;
    ready(found);
    history.replaceState(null, "", address);
    document.title = page.title;
    announce(found.dataset.said || found.querySelector(".empty h2")?.textContent || "");
    shown = text;
  };
  const ask = async () => {
    const text = box.value.trim();
    if (text === shown || Array.from(text).length < 2 || /(order|payment|refund)_/.test(text)) return;
    asked?.abort();
    asked = new AbortController();
    try {
      const answer = await fetch(box.form.action, { method: "POST", body: new FormData(box.form), signal: asked.signal });
      if (!answer.ok) { box.removeEventListener("input", wait); return; } // too often, or signed out: Enter tells
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (page.getElementById("found")) draw(page, answer.url, text);
    } catch {
      // Typed on, or the network is away: Enter asks again.
    }
  };
  const wait = (event) => {
    clearTimeout(timer);
    asked?.abort();
    if (!event.isComposing) timer = setTimeout(ask, REST);
  };
  box.addEventListener("input", wait);
  box.addEventListener("compositionstart", () => clearTimeout(timer));
  box.addEventListener("compositionend", wait);
  // What Enter would find is here, and it is one order: Enter opens it.
  box.form.addEventListener("submit", (event) => {
    clearTimeout(timer);
    const rows = found.querySelectorAll("[data-rows] tbody th a");
    if (rows.length !== 1 || !shown || box.value.trim() !== shown || document.querySelector(".paging")) return;
    event.preventDefault();
    rows[0].click();
  });
}

// Away from the network, every page says so, and what it means for what was sent.
const offline = document.getElementById("offline");
const tellOffline = () => {
  offline.hidden = navigator.onLine;
  offline.textContent = navigator.onLine ? "" : offline.dataset.words;
};
addEventListener("online", tellOffline);
addEventListener("offline", tellOffline);

document.addEventListener("click", (event) => { if (event.target.closest("[data-print]")) print(); });

const words = (element) => element.textContent.replace(/\s+/g, " ");

function ready(root) {
  const refund = root.querySelector("[data-renew]");
  if (refund) refund.words = words(refund);
  if (navigator.clipboard) for (const button of root.querySelectorAll("[data-copy]")) button.removeAttribute("data-waits");
  for (const key of root.querySelectorAll(".search-key, [data-keys], [data-print]")) key.hidden = false;
  for (const row of root.querySelectorAll("[data-rows] tbody tr")) row.dataset.href = row.querySelector("a").href;
  for (const form of root.querySelectorAll("[data-refund]")) refundForm(form);
  for (const input of root.querySelectorAll("[data-count]")) counter(input);
  // Where the next act begins, so that Tab need not pass the whole head; never away from somebody who types already.
  // Of a form that was refused, the field that is to be filled in: the message above it is read out as an alert.
  if (document.activeElement === document.body) (root.querySelector("[autofocus][aria-invalid]") ?? root.querySelector("[data-focus]"))?.focus();
}

ready(document);
renew();
tellOffline();
for (const box of document.querySelectorAll("#q")) searchAsTyped(box);
