// A table or a formula that scrolls sideways is a stop for the keyboard, which can then scroll it; others are none.
document.addEventListener("DOMContentLoaded", () => {
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const box = target.querySelector(":scope > mjx-container") ?? target; // of a formula, once it is typeset
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".pst-scrollable-table-container, div.math")) sizes.observe(box);
});

// A link to a heading: explorers above it grow when they are drawn, and would push it down the window. So it is brought
// back to its place whenever the text changes its height, until the reader does anything, for half a minute at most.
addEventListener("DOMContentLoaded", () => {
  const anchor = location.hash.slice(1).split("&")[0]; // as it stands: Sphinx writes ids in ASCII
  const target = anchor && document.getElementById(anchor);
  if (!target || !document.querySelector(".dvae-still")) return;
  const follower = new ResizeObserver(() => target.scrollIntoView({ behavior: "instant" }));
  follower.observe(document.querySelector("article"));
  setTimeout(() => follower.disconnect(), 30000);
  for (const deed of ["wheel", "touchstart", "pointerdown", "keydown", "hashchange"]) {
    addEventListener(deed, () => follower.disconnect(), { once: true, passive: true });
  }
});
