from django.urls import path

from billing.sso.views import BeginView, DomainsView, DomainView, FinishView, SsoView

urlpatterns = [
    path("auth/sso/begin", BeginView.as_view(), name="sso-begin"),
    path("auth/sso/finish", FinishView.as_view(), name="sso-finish"),
    path("billing/team/sso", SsoView.as_view(), name="team-sso"),
    path("billing/team/sso/domains", DomainsView.as_view(), name="team-sso-domains"),
    path("billing/team/sso/domains/<uuid:id>", DomainView.as_view(), name="team-sso-domain"),
]
