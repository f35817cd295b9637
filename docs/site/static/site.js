// Frames of the explorer take the theme of the page, and the page takes their height. Messages
// work between files on a disk too, where a page cannot look into its frames.
"use strict";

function frames() {
  return document.querySelectorAll("iframe.explorer");
}

function tellTheme() {
  const dark = document.documentElement.dataset.theme === "dark";
  for (const frame of frames()) {
    frame.contentWindow.postMessage({ ddfpTheme: dark ? "dark" : "light" }, "*");
  }
}

addEventListener("message", (event) => {
  for (const frame of frames()) {
    if (frame.contentWindow === event.source && event.data && event.data.ddfpHeight) {
      frame.style.height = `${Math.ceil(event.data.ddfpHeight) + 4}px`;
      tellTheme();
    }
  }
});

addEventListener("DOMContentLoaded", () => {
  new MutationObserver(tellTheme).observe(document.documentElement,
    { attributes: true, attributeFilter: ["data-theme"] });
  for (const frame of frames()) frame.addEventListener("load", tellTheme);
});
