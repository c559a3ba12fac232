from django.urls import path

from adiuva.accounts import views

app_name = "auth"
urlpatterns = [
    path("register", views.Register.as_view(), name="register"),
    path("login", views.Login.as_view(), name="login"),
    path("refresh", views.Refresh.as_view(), name="refresh"),
    path("logout", views.Logout.as_view(), name="logout"),
    path("me", views.Me.as_view(), name="me"),
    path("password", views.Password.as_view(), name="password"),
    path("ws-ticket", views.Ticket.as_view(), name="ws-ticket"),
    path("sessions", views.Sessions.as_view(), name="sessions"),
    path("sessions/<uuid:id>", views.OneSession.as_view(), name="session"),
]
