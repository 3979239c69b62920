// The server names what has changed; the parts of a page that show it fetch themselves anew.
"use strict";

let source = null;
const away = (yes) => { document.querySelector("#away").hidden = !yes; };
document.addEventListener("htmx:error", () => away(true));
document.addEventListener("htmx:response:error", (event) => { // of the others the answer itself says why
  if (event.detail.ctx.swap === "none") away(true);
});
document.addEventListener("htmx:after:request", (event) => { if (event.detail.ctx.response.status < 400) away(false); });
const named = (names) => document.querySelectorAll("[data-on]").forEach((part) => {
  const wanted = part.dataset.on.split(" ");
  if (!names || wanted[0] === "any" || wanted.some((x) => names.includes(x))) htmx.trigger(part, "changed");
});
function listen() {
  source?.close();
  source = null;
  if (document.hidden || !document.querySelector("[data-on], #estimate")) return; // browsers allow six open connections
  source = new EventSource("/events");
  source.addEventListener("open", () => { away(false); named(null); }); // also after a server that was away
  source.addEventListener("error", () => away(true));
  source.addEventListener("changed", (event) => named(event.data.split(" ")));
}
document.addEventListener("visibilitychange", listen);
window.addEventListener("pagehide", () => source?.close());

// Forms: sent once, and kept at every change.
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => {
  document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent);
  listen();
});
document.addEventListener("click", (event) => { // a double click's second half: another button may stand there by now
  if (event.detail > 1 && event.target.closest("button:not([type=button])")) event.preventDefault();
});
const edited = (form) => form && htmx.trigger(form, "edited");
document.addEventListener("change", (event) => {
  const form = event.target.closest("#draft");
  if (!form || event.target.type === "file") return;
  edited(form);
  if (event.target.name === "base" || event.target.name?.startsWith("more_")) htmx.trigger(form, "estimate");
});

// The square of a picture that is trained on: by dragging it, or by its sliders.
const number = (crop, part) => crop.querySelector(`[data-part=${part}]`);
function place(crop, x, y, side) {
  const width = Number(crop.dataset.width), height = Number(crop.dataset.height);
  side = Math.round(Math.max(16, Math.min(side, width, height)));
  x = Math.round(Math.max(0, Math.min(x, width - side)));
  y = Math.round(Math.max(0, Math.min(y, height - side)));
  for (const [part, value, most] of [["side", side, Math.min(width, height)], ["x", x, width - side], ["y", y, height - side]]) {
    const input = number(crop, part);
    input.max = most;
    input.value = value;
    input.disabled = false;
  }
  const square = crop.querySelector(".square");
  for (const [name, value] of Object.entries({ x, y, width: side, height: side })) square.setAttribute(name, value);
  crop.querySelector(".shade").setAttribute("d", `M0 0H${width}V${height}H0Z M${x} ${y}h${side}v${side}h-${side}z`);
}
const placed = (crop) => ["x", "y", "side"].map((part) => Number(number(crop, part).value));
document.addEventListener("input", (event) => {
  const crop = event.target.closest(".crop");
  if (!crop) return;
  const [x, y, side] = placed(crop);
  if (event.target.dataset.part !== "side") return place(crop, x, y, side);
  const before = Number(crop.querySelector(".square").getAttribute("width"));
  place(crop, x + (before - side) / 2, y + (before - side) / 2, side); // grows around its middle
});
document.addEventListener("pointerdown", (event) => {
  const crop = event.target.closest(".crop"), svg = event.target.closest(".crop svg");
  if (!svg) return;
  event.preventDefault();
  svg.setPointerCapture(event.pointerId);
  const scale = Number(crop.dataset.width) / svg.getBoundingClientRect().width;
  const [x, y, side] = placed(crop);
  const move = (now) => place(crop, x + (now.clientX - event.clientX) * scale, y + (now.clientY - event.clientY) * scale, side);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("lostpointercapture", () => { svg.removeEventListener("pointermove", move); edited(crop.closest("form")); }, { once: true });
});

// The mixer.
const mixer = document.querySelector("#mixer");
function mix(names) {
  for (const [name, value] of Object.entries(names)) {
    const field = mixer.elements[name];
    field.value = value;
    if (field.type === "range") field.parentElement.querySelector("output").value = Number(value);
  }
  edited(mixer);
}
const another = () => ({ seed: Math.floor(Math.random() * 1e6) });
if (mixer) {
  mixer.addEventListener("input", (event) => {
    if (event.target.matches("[data-reload]")) return;
    const slid = event.target.type === "range";
    mix(slid ? { [event.target.name]: event.target.value, ...(mixer.elements.locked.checked ? {} : another()) } : {});
  });
  mixer.addEventListener("change", (event) => { // other adapters have other trigger words
    if (!event.target.matches("[data-reload]")) return;
    const { content, style, seed, c, s } = Object.fromEntries(new FormData(mixer));
    location.assign(`/mixer?${new URLSearchParams({ content, style, seed, c, s, locked: "yes" })}`);
  });
  mixer.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.type !== "button") return;
    if (button.id === "dice") mix(another());
    if (button.dataset.set) mix({ [button.dataset.set]: button.dataset.value });
    if (button.dataset.c) mix({ c: button.dataset.c, s: button.dataset.s });
    if (button.dataset.insert) {
      const prompt = mixer.elements.prompt, at = prompt.selectionStart ?? prompt.value.length;
      prompt.setRangeText(button.dataset.insert, at, prompt.selectionEnd ?? at, "end");
      prompt.focus();
      edited(mixer);
    }
  });
  document.addEventListener("htmx:after:swap", () => {
    const state = document.querySelector("#state");
    document.querySelector("#result").setAttribute("hx-get", `/mixer/result?${state.dataset.query}`);
    if (state.dataset.ask) edited(mixer); // nobody draws it: the server was away, or another window wanted others first
  });
}
document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) navigator.clipboard.writeText(copy.dataset.copy).then(() => { copy.textContent = "Copied"; });
});
