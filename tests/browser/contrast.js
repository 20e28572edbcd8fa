// The texts in the given outputs, as [text, contrast]: how well each stands out from what is really painted behind it
// (HTML backgrounds, shapes of an SVG). WCAG 2's formula, from 1 to 21; its level AA asks for 4.5.
(outputs) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    // Browsers answer in many notations; one painted pixel is always red, green, blue, alpha.
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (element) => (element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1);
  const paint = (element) => {
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement && element.tagName !== "svg";
    const [r, g, b, a] = rgba(svg ? (style.fill === "none" ? "transparent" : style.fill) : style.backgroundColor);
    return [r, g, b, a * opacity(element) * (svg ? Number(style.fillOpacity) : 1)];
  };
  const behind = (element, x, y) => {
    // What is painted at a point under the text: from the page upwards.
    const texts = (e) => e === element || element.contains(e) || ["text", "tspan"].includes(e.tagName);
    const stack = document.elementsFromPoint(x, y).filter((e) => !texts(e) || !(e instanceof SVGElement));
    return stack.reverse().reduce((below, e) => over(paint(e), below), [255, 255, 255]);
  };
  const found = [];
  for (const output of document.querySelectorAll(outputs)) {
    const walker = document.createTreeWalker(output, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.data.trim() || element.closest("title, desc, style, script, [disabled], .jp-RenderedImage")) continue;
      element.scrollIntoView({ block: "center", inline: "nearest" });
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = range.getClientRects()[0];
      const style = getComputedStyle(element);
      if (!box || box.width < 2 || style.visibility !== "visible") continue;
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      if (!document.elementFromPoint(x, y)?.closest(outputs)) continue; // scrolled out of sight
      const ground = behind(element, x, y);
      const [r, g, b, a] = rgba(element instanceof SVGElement ? style.fill : style.color);
      const ink = over([r, g, b, a * opacity(element)], ground);
      const [light, dark] = [luminance(ink), luminance(ground)].sort((p, q) => q - p);
      const contrast = (light + 0.05) / (dark + 0.05);
      found.push([node.data.trim().slice(0, 60), Math.round(contrast * 100) / 100]);
    }
  }
  return found;
}
