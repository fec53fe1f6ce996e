// Three NiiVue viewers side by side: source, translation and cycle map, with linked crosshairs and one slider.
// `galipShow` is called by the page with {panels: [{url, name, low, high, colormap}]}, or with null to clear.
(() => {
  "use strict";
  const AXES = { axial: 2, coronal: 1, sagittal: 0 };
  let viewers = [];

  const element = (id) => document.getElementById(id);
  const note = (text) => { element("galip-note").textContent = text; };

  function makeViewers() {
    const canvases = [...document.querySelectorAll("#galip-viewer canvas")];
    return Promise.all(canvases.map(async (canvas) => {
      const viewer = new niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [1, 0.8, 0.2, 0.8], crosshairWidth: 0.5,
        dragAndDropEnabled: false, show3Dcrosshair: false, isOrientationTextVisible: true, loadingText: "",
        isRadiologicalConvention: true, fontSizeScaling: 0.5,
      });
      await viewer.attachToCanvas(canvas);
      viewer.setSliceType(viewer.sliceTypeAxial);
      return viewer;
    }));
  }

  function plane() { return element("galip-plane").value; }

  function draw() {
    const axis = AXES[plane()];
    for (const viewer of viewers) {
      if (viewer.volumes.length === 0) continue;
      viewer.setSliceType([viewer.sliceTypeSagittal, viewer.sliceTypeCoronal, viewer.sliceTypeAxial][axis]);
    }
    followCrosshair();
  }

  // The slider moves the crosshair of all viewers; a click into one viewer moves the slider and the others.
  function moveTo(share) {
    for (const viewer of viewers) {
      if (viewer.volumes.length === 0) continue;
      const position = [...viewer.scene.crosshairPos];
      position[AXES[plane()]] = share;
      viewer.scene.crosshairPos = position;
      viewer.drawScene();
    }
  }

  function followCrosshair() {
    const shown = viewers.find((viewer) => viewer.volumes.length > 0);
    if (shown) element("galip-slice").value = shown.scene.crosshairPos[AXES[plane()]];
  }

  async function show(view) {
    const panel = element("galip-viewer");
    panel.dataset.state = "loading";
    if (!view || !view.panels) {
      panel.hidden = true;
      panel.dataset.state = "empty";
      return;
    }
    panel.hidden = false;
    try {
      if (viewers.length === 0) {
        viewers = window.galipViewers = await makeViewers();
        viewers.forEach((viewer, index) => {
          viewer.broadcastTo(viewers.filter((_, other) => other !== index), { "2d": true, "3d": false });
          viewer.onLocationChange = followCrosshair;
        });
        element("galip-slice").addEventListener("input", (event) => moveTo(Number(event.target.value)));
        element("galip-plane").addEventListener("change", draw);
      }
      const figures = [...panel.querySelectorAll("figure")];
      await Promise.all(viewers.map(async (viewer, index) => {
        const given = view.panels[index];
        figures[index].hidden = !given;
        while (viewer.volumes.length > 0) viewer.removeVolume(viewer.volumes[0]);
        if (!given) return;
        figures[index].querySelector("figcaption").textContent = given.name;
        await viewer.loadVolumes([{
          url: given.url, colormap: given.colormap, cal_min: given.low, cal_max: given.high,
        }]);
      }));
      draw();
      note("");
      panel.dataset.state = "shown";
    } catch (error) {
      // Most often a browser without WebGL 2: the files can be downloaded all the same.
      note(`The scans cannot be shown in this browser (${error.message}). They can be downloaded below.`);
      panel.dataset.state = "failed";
    }
  }

  window.galipShow = show;
})();
