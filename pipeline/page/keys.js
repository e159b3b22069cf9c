// Arrow keys, W A S D, space and a gamepad, written as `x y z turn grip` into the field "Keys", which the page shows
// to each viewer while a hand drives. Without that field nothing is read, and the viewer's camera has its keys back.
(() => {
  if (window.eftKeys) return;
  window.eftKeys = true;
  const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "KeyW", "KeyS", "KeyA", "KeyD", "Space"];
  const held = new Set();
  let grip = 0;
  let buttonWasDown = false;
  let sent = "";

  function field() {
    for (const label of document.querySelectorAll("label"))
      if (label.textContent.trim() === "Keys") return label.closest("div").parentElement.querySelector("input");
    return null;
  }

  const writes = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName) && element.type !== "checkbox";

  // In the capture phase of the window: before the viewer, which moves its camera with the same keys.
  window.addEventListener("keydown", (event) => {
    if (!KEYS.includes(event.code) || writes(event.target) || !field()) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.code === "Space" && !event.repeat) grip = 1 - grip;
    held.add(event.code);
    send();
  }, true);
  window.addEventListener("keyup", (event) => {
    if (!held.delete(event.code)) return;
    event.stopImmediatePropagation();
    send();
  }, true);
  window.addEventListener("blur", () => {
    held.clear();
    send();
  });

  const axis = (less, more) => (held.has(more) ? 1 : 0) - (held.has(less) ? 1 : 0);

  function sticks() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((one) => one);
    if (!pad) return [0, 0, 0, 0];
    const down = pad.buttons[0]?.pressed ?? false;
    if (down && !buttonWasDown) grip = 1 - grip;
    buttonWasDown = down;
    return [pad.axes[0] ?? 0, -(pad.axes[1] ?? 0), -(pad.axes[3] ?? 0), pad.axes[2] ?? 0];
  }

  function send() {
    const target = field();
    if (!target) {
      sent = "";
      return;
    }
    const pushed = sticks();
    const keys = [axis("ArrowLeft", "ArrowRight"), axis("ArrowDown", "ArrowUp"), axis("KeyS", "KeyW"), axis("KeyA", "KeyD")];
    const text = [...keys.map((key, i) => (key || pushed[i]).toFixed(2)), grip].join(" ");
    if (text === sent) return;
    sent = text;
    // The way in which React hears of a value that nobody typed.
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(target, text);
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }

  setInterval(send, 50);
})();
