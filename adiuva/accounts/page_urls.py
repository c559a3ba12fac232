"""URLs of the account pages: sign-in, security settings, and links in mails."""

from django.urls import path

from adiuva.accounts.pages import links, security, sign_in

urlpatterns = [
    path("", security.SecurityPage.as_view(), name="account"),
    path("sign-in", sign_in.SignInPage.as_view(), name="sign-in"),
    path("second-step", sign_in.SecondStepPage.as_view(), name="second-step"),
    path("sign-out", sign_in.SignOutPage.as_view(), name="sign-out"),
    path("address", security.ChangeAddressPage.as_view(), name="change-address"),
    path("password", security.ChangePasswordPage.as_view(), name="change-password"),
    path("app/add", security.AddAppPage.as_view(), name="add-app"),
    path("app/confirm", security.ConfirmAppPage.as_view(), name="confirm-app"),
    path("app/remove", security.RemoveAppPage.as_view(), name="remove-app"),
    path("passkeys/add", security.AddPasskeyPage.as_view(), name="add-passkey"),
    path("passkeys/make", security.MakePasskeyPage.as_view(), name="make-passkey"),
    path("passkeys/<uuid:id>/remove", security.RemovePasskeyPage.as_view(), name="remove-passkey"),
    path("recovery-codes", security.NewCodesPage.as_view(), name="new-recovery-codes"),
    path("verify", links.VerifyPage.as_view(), name="verify-address"),
    path("confirm-address", links.ConfirmAddressPage.as_view(), name="confirm-address"),
    path("new-password", links.ResetPage.as_view(), name="reset-password"),
    path("remove-second-factor", links.RemoveFactorsPage.as_view(), name="remove-factors"),
    path("forgotten-password", links.AskResetPage.as_view(), name="ask-reset"),
]
