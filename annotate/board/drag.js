// Dragging with mouse, pen or finger by pointer events. What can be dragged carries `data-drag`, where it can be
// dropped carries `data-drop`.
const DRAG_STARTS_AFTER_PX = 6;

function enableDragging(root, onDrop) {
  root.addEventListener('pointerdown', down => {
    const source = down.target.closest('[data-drag]');
    if (!source || down.button !== 0 || down.target.closest('a')) return;
    const drag = { what: source.dataset.drag, ghost: null, target: null };
    const move = event => {
      const far = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > DRAG_STARTS_AFTER_PX;
      if (!drag.ghost && far) drag.ghost = startGhost(root, drag.what);
      if (drag.ghost) follow(root, drag, event);
    };
    const stop = event => {
      for (const [name, listener] of listeners) document.removeEventListener(name, listener);
      if (!drag.ghost) return;
      endGhost(root, drag);
      if (event.type !== 'pointerup') return;
      swallowNextClick();
      if (drag.target) onDrop(drag.what === BAR ? BAR : Number(drag.what), drag.target.dataset.drop);
    };
    const listeners = [['pointermove', move], ['pointerup', stop], ['pointercancel', stop]];
    for (const [name, listener] of listeners) document.addEventListener(name, listener);
  });
}

function startGhost(root, what) {
  const ghost = document.createElement('div');
  ghost.className = 'ghost';
  ghost.textContent = what === BAR ? say('bar') : `A${what}`;
  root.append(ghost);
  root.classList.add('dragging');
  root.dataset.dragging = what === BAR ? 'bar' : 'response';
  return ghost;
}

function follow(root, drag, event) {
  drag.ghost.style.left = `${event.clientX}px`;
  drag.ghost.style.top = `${event.clientY}px`;
  const under = document.elementFromPoint(event.clientX, event.clientY);
  const target = under && root.contains(under) ? under.closest('[data-drop]') : null;
  if (target === drag.target) return;
  drag.target?.classList.remove('over');
  target?.classList.add('over');
  drag.target = target;
}

function endGhost(root, drag) {
  drag.ghost.remove();
  drag.target?.classList.remove('over');
  root.classList.remove('dragging');
  delete root.dataset.dragging;
}

/** The click that follows a drag is not a tap. */
function swallowNextClick() {
  const swallow = event => { event.stopPropagation(); event.preventDefault(); };
  document.addEventListener('click', swallow, { capture: true, once: true });
  setTimeout(() => document.removeEventListener('click', swallow, { capture: true }), 0);
}
