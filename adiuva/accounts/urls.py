from django.urls import path

from adiuva.accounts import views

app_name = "auth"
urlpatterns = [
    path("register", views.RegisterView.as_view(), name="register"),
    path("login", views.LoginView.as_view(), name="login"),
    path("refresh", views.RefreshView.as_view(), name="refresh"),
    path("logout", views.LogoutView.as_view(), name="logout"),
    path("me", views.MeView.as_view(), name="me"),
    path("password", views.PasswordView.as_view(), name="password"),
    path("password/reset", views.PasswordResetView.as_view(), name="password-reset"),
    path("password/reset/confirm", views.PasswordResetConfirmView.as_view(), name="password-reset-confirm"),
    path("email/send-verification", views.SendVerificationView.as_view(), name="send-verification"),
    path("email/verify", views.VerifyView.as_view(), name="verify"),
    path("email/confirm-change", views.AddressConfirmView.as_view(), name="confirm-change"),
    path("ws-ticket", views.TicketView.as_view(), name="ws-ticket"),
    path("sessions", views.SessionsView.as_view(), name="sessions"),
    path("staff-actions", views.StaffActionsView.as_view(), name="staff-actions"),
    path("sessions/<uuid:id>", views.SessionView.as_view(), name="session"),
]
