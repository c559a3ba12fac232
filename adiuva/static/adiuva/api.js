// Forms of the API's pages: PUT, PATCH and DELETE, and bodies of JSON, which a form alone cannot send.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  const method = form.dataset.method;
  if (!method) return;
  event.preventDefault();
  const json = form.querySelector("textarea[data-json]");
  const headers = { Accept: "text/html", "X-CSRFToken": document.querySelector("meta[name=csrf-token]").content };
  if (json) headers["Content-Type"] = "application/json";
  const body = method === "DELETE" ? undefined : json ? json.value : new FormData(form);
  const address = form.getAttribute("action");
  const button = form.querySelector("button");
  button.disabled = true;
  let page;
  try {
    const answer = await fetch(address, { method, headers, body });
    if (answer.ok && form.dataset.next) {
      location.assign(form.dataset.next);
      return;
    }
    page = await answer.text();
    if (!answer.headers.get("content-type")?.startsWith("text/html")) throw new Error(page);
  } catch (error) {
    button.disabled = false;
    alert(`${document.body.dataset.failed} ${error.message}`);
    return;
  }
  document.open();
  document.write(page);
  document.close();
  scrollTo(0, 0);
});
