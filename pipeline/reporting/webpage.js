"use strict";
// Plays the steps of the refinement: all examples at once, by buttons, slider and keys. Without this script all steps are listed.
(() => {
  const PAUSE = 1100; // milliseconds a step is shown while it plays
  const player = document.querySelector("[data-player]");
  if (!player) return;
  const controls = player.querySelector(".controls");
  const slider = controls.querySelector("input");
  const output = controls.querySelector("output");
  const play = controls.querySelector("[data-do=play]");
  const lists = [...player.querySelectorAll(".stages")].map((list) => [...list.children]);
  const last = Number(slider.max);
  let step = 0;
  let timer = 0;

  function show(number) {
    step = Math.max(0, Math.min(last, number));
    for (const stages of lists) {
      stages.forEach((stage, i) => stage.classList.toggle("current", i === Math.min(step, stages.length - 1)));
    }
    slider.value = String(step);
    output.textContent = lists[0][step].dataset.title;
    slider.setAttribute("aria-valuetext", output.textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  function start() {
    if (step === last) show(0);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      show(step + 1);
      if (step === last) stop();
    }, PAUSE);
  }

  const actions = {
    back: () => { stop(); show(step - 1); },
    forward: () => { stop(); show(step + 1); },
    play: () => (timer ? stop() : start()),
  };
  const keys = { ArrowLeft: "back", ArrowRight: "forward", " ": "play" };

  function visible() {
    const place = player.getBoundingClientRect();
    return place.top < window.innerHeight && place.bottom > 0;
  }

  controls.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) actions[button.dataset.do]();
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  document.addEventListener("keydown", (event) => {
    const name = keys[event.key];
    const within = player.contains(event.target) || (event.target === document.body && visible());
    const own = event.target === slider ? event.key !== " " : event.target.closest("button") && event.key === " ";
    if (!name || !within || own || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[name]();
  });

  player.querySelector(".examples").classList.add("playing");
  controls.hidden = false;
  show(0);
})();
