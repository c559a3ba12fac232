// Reads an iCalendar file (RFC 5545) into rows of timelines. Repetitions are not unfolded: each event is one row.

/** An importer's one function: the text of a file in, rows out. The client checks them, and asks before it keeps any. */
export function importFile(text) {
  const rows = [];
  let event = null;
  for (const { name, value } of contentLines(text)) {
    if (name === "BEGIN" && value === "VEVENT") event = {};
    else if (name === "END" && value === "VEVENT") {
      if (event?.title && event.date) rows.push({ table: "timelines", values: event });
      event = null;
    } else if (event && name === "SUMMARY") event.title = plain(value);
    else if (event && name === "DTSTART") event.date = milliseconds(value);
  }
  return rows;
}

/** Lines that begin with a space go on with the one before. */
function* contentLines(text) {
  const unfolded = text.replace(/\r?\n[ \t]/g, "");
  for (const line of unfolded.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon > 0) yield { name: line.slice(0, colon).split(";")[0].toUpperCase(), value: line.slice(colon + 1) };
  }
}

function plain(value) {
  return value.replace(/\\n/gi, " ").replace(/\\([,;\\])/g, "$1").trim();
}

/** Milliseconds since 1970 of "20300102" or "20300102T030405Z"; a local time without a zone is taken as the machine's. */
function milliseconds(value) {
  const found = /^(\d{4})(\d{2})(\d{2})(?:T(\d{2})(\d{2})(\d{2})(Z?))?$/.exec(value);
  if (!found) return undefined;
  const [year, month, day, hour, minute, second] = found.slice(1, 7).map((part) => Number(part ?? 0));
  const isUtc = found[7] === "Z";
  const parts = [year, month - 1, day, hour, minute, second];
  return isUtc ? Date.UTC(...parts) : new Date(...parts).getTime();
}
