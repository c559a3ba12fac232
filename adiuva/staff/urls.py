from django.contrib import admin
from django.urls import path

from adiuva.staff import views

urlpatterns = [path("find/", admin.site.admin_view(views.find), name="staff-find")]
