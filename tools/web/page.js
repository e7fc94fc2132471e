// Turns orbits and frames of Gaussians by a slider. Everything stays in the browser: no request per view.
// `element` is the block of HTML; its content may be replaced at any time, so all listeners are on the block.

function nearest(azimuths, angle) {
  const off = azimuths.map(azimuth => Math.abs(((azimuth - angle + 540) % 360) - 180));
  return off.indexOf(Math.min(...off));
}

function show(orbit, view) {
  const columns = Number(orbit.dataset.columns), rows = Number(orbit.dataset.rows);
  const x = columns > 1 ? (view % columns) / (columns - 1) * 100 : 0;
  const y = rows > 1 ? Math.floor(view / columns) / (rows - 1) * 100 : 0;
  orbit.style.backgroundPosition = `${x}% ${y}%`;
}

function turn(slider) {
  const group = slider.closest(".turntables"), value = Number(slider.value);
  let angle = value;
  for (const orbit of group.querySelectorAll(".orbit")) {
    const azimuths = JSON.parse(orbit.dataset.azimuths);
    const view = group.dataset.by === "view" ? value : nearest(azimuths, value);
    show(orbit, view);
    if (group.dataset.by === "view") angle = azimuths[view];
  }
  for (const frame of group.querySelectorAll("iframe")) frame.src = `${frame.dataset.page}#panel=0&azimuth=${angle}`;
  group.querySelector("output").textContent = `${Math.round(angle)}°`;
}

element.addEventListener("input", event => {
  if (event.target.matches(".turn input")) turn(event.target);
});

let drag = null;  // an orbit can be turned by hand too
element.addEventListener("pointerdown", event => {
  const orbit = event.target.closest(".orbit");
  if (!orbit) return;
  const slider = orbit.closest(".turntables").querySelector(".turn input");
  drag = { slider, x: event.clientX, value: Number(slider.value), width: orbit.clientWidth };
  orbit.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", event => {
  if (!drag) return;
  const count = Number(drag.slider.max) + 1;
  const moved = Math.round((event.clientX - drag.x) / drag.width * count);
  drag.slider.value = ((drag.value - moved) % count + count) % count;
  turn(drag.slider);
});
for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, () => { drag = null; });
