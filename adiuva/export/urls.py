from django.urls import path

from adiuva.export.views import ArchiveView, ExportsView, ExportView

urlpatterns = [
    path("account/export", ExportsView.as_view(), name="account-exports"),
    path("account/export/<uuid:export_id>", ExportView.as_view(), name="account-export"),
    path("account/export/<uuid:export_id>/archive", ArchiveView.as_view(), name="account-export-archive"),
]
