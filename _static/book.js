/* A table that scrolls sideways is a stop for the keyboard, which can then scroll it; one that fits is none. */
document.addEventListener("DOMContentLoaded", () => {
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".pst-scrollable-table-container")) sizes.observe(box);
});
