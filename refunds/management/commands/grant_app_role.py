from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from refunds import grants


class Command(BaseCommand):
    help = (
        "Give the application's PostgreSQL role the rights of refunds/grants.py and no others. By the owner of the "
        "tables, after each migrate; done again, it changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("role", help="the role that the site and the workers sign in as")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = grants.grant(options["role"])
        except grants.NotGranted as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{options['role']}: the rights of refunds/grants.py, on {count} tables")
