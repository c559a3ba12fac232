from django.urls import path

from adiuva.accounts import factor_views, views

app_name = "auth"
urlpatterns = [
    path("register", views.RegisterView.as_view(), name="register"),
    path("login", views.LoginView.as_view(), name="login"),
    path("refresh", views.RefreshView.as_view(), name="refresh"),
    path("logout", views.LogoutView.as_view(), name="logout"),
    path("password", views.PasswordView.as_view(), name="password"),
    path("password/reset", views.PasswordResetView.as_view(), name="password-reset"),
    path("password/reset/confirm", views.PasswordResetConfirmView.as_view(), name="password-reset-confirm"),
    path("email/send-verification", views.SendVerificationView.as_view(), name="send-verification"),
    path("email/verify", views.VerifyView.as_view(), name="verify"),
    path("email/confirm-change", views.AddressConfirmView.as_view(), name="confirm-change"),
    path("email/change", views.AddressChangeView.as_view(), name="change-address"),
    path("login/second-factor", factor_views.SecondFactorView.as_view(), name="login-second-factor"),
    path("login/passkey", factor_views.PasskeyLoginView.as_view(), name="login-passkey"),
    path("login/passkey-options", factor_views.PasskeyOptionsView.as_view(), name="login-passkey-options"),
    path("second-factors", factor_views.SecondFactorsView.as_view(), name="second-factors"),
    path("totp", factor_views.TotpView.as_view(), name="totp"),
    path("totp/confirm", factor_views.TotpConfirmView.as_view(), name="totp-confirm"),
    path("passkeys", factor_views.PasskeysView.as_view(), name="passkeys"),
    path("passkeys/<uuid:id>", factor_views.PasskeyView.as_view(), name="passkey"),
    path(
        "passkeys/register-options",
        factor_views.PasskeyRegisterOptionsView.as_view(),
        name="passkey-register-options",
    ),
    path(
        "passkeys/confirm-options",
        factor_views.PasskeyConfirmOptionsView.as_view(),
        name="passkey-confirm-options",
    ),
    path("recovery-codes", factor_views.RecoveryCodesView.as_view(), name="recovery-codes"),
    path("ws-ticket", views.TicketView.as_view(), name="ws-ticket"),
    path("sessions", views.SessionsView.as_view(), name="sessions"),
    path("staff-actions", views.StaffActionsView.as_view(), name="staff-actions"),
    path("sessions/<uuid:id>", views.SessionView.as_view(), name="session"),
]
