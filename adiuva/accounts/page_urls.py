from django.urls import path

from adiuva.accounts import pages

urlpatterns = [
    path("verify", pages.VerifyPage.as_view(), name="verify-address"),
    path("confirm-address", pages.ConfirmAddressPage.as_view(), name="confirm-address"),
    path("new-password", pages.ResetPage.as_view(), name="reset-password"),
    path("forgotten-password", pages.AskResetPage.as_view(), name="ask-reset"),
]
