// Arrow keys, W A S D, space and a gamepad, sent to the page's text field "keys" as `x y z turn grip` while `driving`.
// Sent to each viewer once; the page then sets window.eftDriving.
(() => {
  if (window.eftKeys) return;
  window.eftKeys = true;
  const held = new Set();
  const known = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "KeyW", "KeyS", "KeyA", "KeyD", "Space"];
  let grip = 0;
  let buttonWasDown = false;
  let sent = "";

  const typing = (target) => ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName) && target.type !== "checkbox";
  const mine = (event) => window.eftDriving && known.includes(event.code) && !typing(event.target);

  // In the capture phase of the window: before the viewer, which moves its camera with the same keys.
  window.addEventListener("keydown", (event) => {
    if (!mine(event)) return;
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
  window.addEventListener("blur", () => { held.clear(); send(); });

  const axis = (less, more) => (held.has(more) ? 1 : 0) - (held.has(less) ? 1 : 0);

  function pad() {
    for (const one of navigator.getGamepads ? navigator.getGamepads() : []) {
      if (!one) continue;
      const down = one.buttons.length > 0 && one.buttons[0].pressed;
      if (down && !buttonWasDown) grip = 1 - grip;
      buttonWasDown = down;
      return [one.axes[0] || 0, -(one.axes[1] || 0), -(one.axes[3] || 0), one.axes[2] || 0];
    }
    return [0, 0, 0, 0];
  }

  function send() {
    if (!window.eftDriving) return;
    const keys = [axis("ArrowLeft", "ArrowRight"), axis("ArrowDown", "ArrowUp"), axis("KeyS", "KeyW"), axis("KeyA", "KeyD")];
    const sticks = pad();
    const text = [...keys.map((key, i) => (key || sticks[i]).toFixed(2)), grip].join(" ");
    const field = document.getElementById("eft-keys")?.parentElement?.parentElement?.querySelector("input[data-eft]") || find();
    if (text === sent || !field) return;
    sent = text;
    // The way in which React hears of a value that no key was pressed for.
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function find() {
    for (const label of document.querySelectorAll("label")) {
      if (label.textContent.trim() !== "Sent") continue;
      const field = document.getElementById(label.htmlFor) || label.closest("div")?.parentElement?.querySelector("input");
      if (field) return field;
    }
    return null;
  }

  setInterval(send, 50);
})();
