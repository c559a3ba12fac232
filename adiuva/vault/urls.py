from django.urls import path

from adiuva.vault.views.backups import BackupHistoryView, BackupView, OneBackupView
from adiuva.vault.views.records import ChangesView, RecordsView, RecordView, UndeleteView
from adiuva.vault.views.uploads import UploadsView, UploadView
from adiuva.vault.views.usage import UsageView
from adiuva.vault.views.vectors import SearchVectorsView, UpsertVectorsView, VectorsView

urlpatterns = [
    path("storage/records", RecordsView.as_view(), name="storage-records"),
    path("storage/records/<uuid:record_id>", RecordView.as_view(), name="storage-record"),
    path("storage/records/<uuid:record_id>/undelete", UndeleteView.as_view(), name="storage-undelete"),
    path("storage/changes", ChangesView.as_view(), name="storage-changes"),
    path("storage/usage", UsageView.as_view(), name="storage-usage"),
    path("storage/uploads", UploadsView.as_view(), name="storage-uploads"),
    path("storage/uploads/<uuid:upload_id>", UploadView.as_view(), name="storage-upload"),
    path("storage/vectors", VectorsView.as_view(), name="storage-vectors"),
    path("storage/vectors/upsert", UpsertVectorsView.as_view(), name="storage-vectors-upsert"),
    path("storage/vectors/search", SearchVectorsView.as_view(), name="storage-vectors-search"),
    path("backup", BackupView.as_view(), name="backup"),
    path("backup/history", BackupHistoryView.as_view(), name="backup-history"),
    path("backup/<uuid:backup_id>", OneBackupView.as_view(), name="backup-one"),
]
