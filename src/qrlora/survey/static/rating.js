// Keys for those who rate many pictures. Everything works without this file, by the form alone.
"use strict";

const form = document.querySelector("form.questions");
const groups = [...form.querySelectorAll("fieldset.levels, fieldset.radios")];
const buttons = [...form.querySelectorAll("button[data-key]")];
form.querySelector(".keys").hidden = false;

const open = () => groups.find((group) => !group.querySelector("input:checked"));
const point = () => groups.forEach((group) => group.classList.toggle("current", group === open()));

let sent = false;
form.addEventListener("submit", (event) => {
  if (sent) event.preventDefault(); // a double click
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; point(); }); // also when the back button brings the page again
form.addEventListener("change", point);

document.addEventListener("click", (event) => { // a double click's second half, which the next page may get
  if (event.detail > 1 && event.target.closest("button, a")) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const here = event.target.closest?.("fieldset");
  const button = buttons.find((x) => x.dataset.key === event.key);
  if (button) {
    event.preventDefault();
    button.click();
  } else if (event.key === "b" || event.key === "B") {
    form.querySelector("#back")?.click();
  } else if (/^[0-5]$/.test(event.key) && groups.length) {
    const group = here ?? open() ?? groups.at(-1);
    const input = [...group.querySelectorAll("input")].find((x) => x.value === event.key);
    if (input) { input.checked = true; point(); }
    if (here) (open()?.querySelector("input") ?? form.querySelector("button")).focus();
  } else if (event.key === "Enter" && !event.target.closest?.("a, button") && !open() && groups.length) {
    event.preventDefault();
    form.requestSubmit();
  }
});
