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
    path("ws-ticket", views.TicketView.as_view(), name="ws-ticket"),
    path("sessions", views.SessionsView.as_view(), name="sessions"),
    path("sessions/<uuid:id>", views.SessionView.as_view(), name="session"),
]
