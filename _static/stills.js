// Where the explorers' scripts do not come, a line under each still picture says so: book.css shows it for this class.
// It lies in the picture's box, which is hidden once an explorer is drawn, however late.
(() => {
  const CDN = "https://cdn.jsdelivr.net/";
  const PATIENCE = 20_000; // milliseconds after which a script that neither came nor failed counts as missing
  const say = () => document.documentElement.classList.add("dvae-missing");
  const failed = ({ target }) => target.tagName === "SCRIPT" && target.src.startsWith(CDN) && say();
  addEventListener("error", failed, { capture: true }); // a failed load is told to its tag, and does not bubble
  setTimeout(say, PATIENCE);
})();
