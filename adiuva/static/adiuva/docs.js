// The API's documentation: dark where the system is, and names for fields that Swagger UI gives none.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const nameFields = () => {
  for (const field of document.querySelectorAll("#swagger-ui :is(input, select, textarea):not([aria-label], [type=hidden])")) {
    const beside = field.closest("tr")?.cells[0] ?? field.closest("label");
    const name = beside?.innerText || field.placeholder || (field.id === "servers" ? "Server" : "Body of the request");
    field.setAttribute("aria-label", name.replace(/\s+/g, " ").trim());
  }
};
new MutationObserver(nameFields).observe(document.getElementById("swagger-ui"), { childList: true, subtree: true });
