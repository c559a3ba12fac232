// Forms with data-passkey ask the browser for a passkey (data-passkey="get") or to make one ("create"), and are sent
// with what it answers. Without this script, or in a browser without passkeys, they stay hidden.
"use strict";

for (const form of document.querySelectorAll("form[data-passkey]")) {
  const parse = {
    get: "parseRequestOptionsFromJSON",
    create: "parseCreationOptionsFromJSON",
  }[form.dataset.passkey];
  const said = form.querySelector("[role=alert]");
  if (!window.PublicKeyCredential?.[parse]) {
    const without = document.getElementById("no-passkeys");
    if (without) without.hidden = false;
    continue;
  }
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "";
    try {
      const publicKey = PublicKeyCredential[parse](JSON.parse(form.dataset.options));
      const credential = await navigator.credentials[form.dataset.passkey]({ publicKey });
      form.elements.credential.value = JSON.stringify(credential.toJSON());
      form.submit();
    } catch (error) {
      const options = JSON.parse(form.dataset.options);
      // NotAllowedError: the person closed the browser's question, or did not answer it in time.
      said.textContent =
        {
          InvalidStateError: form.dataset.exists,
          SecurityError: form.dataset.elsewhere.replace("{name}", options.rpId ?? options.rp?.id),
        }[error.name] ?? form.dataset.failed;
    }
  });
}
