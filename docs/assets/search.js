// A word of a search that begins with a hyphen would mean "without it": the hyphens of a pasted flag go.
document.addEventListener("input", (event) => {
  const box = event.target;
  if (box.matches("[data-md-component=search-query]")) {
    const plain = box.value.replace(/(^|\s)-+/g, "$1");
    if (plain !== box.value) box.value = plain;
  }
}, true);
