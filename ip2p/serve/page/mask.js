// A mask painted over the picture, by pointer or by keys: white where to edit, of the picture's own size.

export class Mask {
  constructor(canvas, ring, image) {
    Object.assign(this, { canvas, ring, image, brush: 0.12, painted: false, last: null, spot: { x: 0.5, y: 0.5 }, onPaint: () => {} });
    canvas.addEventListener("pointerdown", (e) => {
      canvas.setPointerCapture(e.pointerId);
      this.last = null;
      this.stroke(this.where(e));
    });
    canvas.addEventListener("pointermove", (e) => e.buttons & 1 && this.stroke(this.where(e)));
    canvas.addEventListener("keydown", (e) => this.key(e));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => (this.ring.hidden = true));
  }

  // Forget what was painted; the next stroke is on the picture as it is now.
  clear() {
    this.canvas.width = this.canvas.height = 0;
    this.painted = false;
    this.spot = { x: 0.5, y: 0.5 };
    this.last = null;
    this.onPaint();
  }

  // What was painted once before: white of a mask as `blob` gives it.
  async take(blob) {
    const sheet = await createImageBitmap(blob);
    [this.canvas.width, this.canvas.height] = [sheet.width, sheet.height];
    const pen = this.canvas.getContext("2d");
    pen.drawImage(sheet, 0, 0);
    const pixels = pen.getImageData(0, 0, sheet.width, sheet.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([0xf0, 0x76, 0x3b, pixels.data[i]], i);
    pen.putImageData(pixels, 0, 0);
    this.painted = true;
    this.onPaint();
  }

  begin() {
    if (this.canvas.width === 0) [this.canvas.width, this.canvas.height] = [this.image.naturalWidth, this.image.naturalHeight];
  }

  // Where the picture lies in its element (object-fit: contain), in CSS pixels of the viewport.
  box() {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const scale = Math.min(width / this.canvas.width, height / this.canvas.height);
    const [w, h] = [this.canvas.width * scale, this.canvas.height * scale];
    return { left: left + (width - w) / 2, top: top + (height - h) / 2, width: w, height: h };
  }

  where(e) {
    const box = this.box();
    return { x: (e.clientX - box.left) / box.width, y: (e.clientY - box.top) / box.height };
  }

  stroke(to) {
    const { canvas } = this;
    const from = this.last ?? to;
    const pen = canvas.getContext("2d");
    pen.strokeStyle = "#f0763b";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = this.brush * Math.max(canvas.width, canvas.height);
    pen.beginPath();
    pen.moveTo(from.x * canvas.width, from.y * canvas.height);
    pen.lineTo(to.x * canvas.width + 0.01, to.y * canvas.height);
    pen.stroke();
    this.last = this.spot = to;
    if (!this.painted) {
      this.painted = true;
      this.onPaint();
    }
  }

  key(e) {
    const step = this.brush / 3;
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[e.key] ?? [0, 0];
    if (!dx && !dy && e.key !== " ") return;
    e.preventDefault();
    const to = { x: Math.min(1, Math.max(0, this.spot.x + dx)), y: Math.min(1, Math.max(0, this.spot.y + dy)) };
    if (e.key === " " || e.shiftKey) {
      this.last = e.key === " " ? null : this.spot;
      this.stroke(to);
    }
    this.spot = to;
    this.show();
  }

  // The ring shows where the keys are, and how wide they paint.
  show() {
    const box = this.box();
    const parent = this.canvas.parentElement.getBoundingClientRect();
    const wide = this.brush * Math.max(box.width, box.height);
    Object.assign(this.ring.style, {
      width: `${wide}px`,
      height: `${wide}px`,
      left: `${box.left - parent.left + this.spot.x * box.width - wide / 2}px`,
      top: `${box.top - parent.top + this.spot.y * box.height - wide / 2}px`,
    });
    this.ring.hidden = false;
  }

  blob() {
    const { width, height } = this.canvas;
    const sheet = Object.assign(document.createElement("canvas"), { width, height });
    const pen = sheet.getContext("2d");
    pen.drawImage(this.canvas, 0, 0);
    for (const [how, colour] of [["source-in", "white"], ["destination-over", "black"]]) {
      pen.globalCompositeOperation = how;
      pen.fillStyle = colour;
      pen.fillRect(0, 0, width, height);
    }
    return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
  }
}
