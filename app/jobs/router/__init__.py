"""The routes of the jobs module, by what they are about."""

from app.jobs.router import admin, admin_webhooks, invoices, jobs, tickets, webhooks

ROUTERS = (jobs.router, tickets.router, invoices.router, webhooks.router, admin.router, admin_webhooks.router)
