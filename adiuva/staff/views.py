"""The search page of the staff site."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from adiuva.staff import search

_MAX_TERM = 254  # the longest address


def find(request: HttpRequest) -> HttpResponse:
    """Find what `q` names: an id of any kind, a part of an address, a code. A single row is shown at once."""
    term = request.GET.get("q", "").strip()[:_MAX_TERM]
    found = search.find(term, request.user) if term else []
    if len(found) == 1 and len(found[0].rows) == 1:
        for cell in found[0].rows[0]:
            if url := getattr(cell, "url", ""):
                return HttpResponseRedirect(url)
    shown = {"title": f"Search: {term}" if term else "Search", "panels": found, "term": term}
    return render(request, "admin/find.html", {**admin.site.each_context(request), **shown})
