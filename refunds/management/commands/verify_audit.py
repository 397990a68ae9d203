from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import translation

from refunds import sealing


class Command(BaseCommand):
    help = "Compare the audit trail with its seals and its kept heads. Reads only; exits with 1 if anything is wrong."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--head",
            type=Path,
            metavar="FILE",
            help="heads kept elsewhere, one a line, as --print-head prints them; that in STATE_DIR is always compared",
        )
        parser.add_argument(
            "--after",
            type=int,
            metavar="ID",
            help="begin behind this sealed entry: what is wrong up to it is known",
        )
        parser.add_argument(
            "--no-head",
            action="store_true",
            help="do not fail where no kept head is there to be compared, as on a copy of the database",
        )
        parser.add_argument(
            "--print-head", action="store_true", help="print the newest head, to be kept elsewhere, and end"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["print_head"]:
                self._print_head()
            else:
                heads = sealing.read_heads(options["head"]) if options["head"] else []
                self._verify(heads, after=options["after"], without_head=options["no_head"])
        except (OSError, sealing.UnreadableHead) as error:
            raise CommandError(f"a kept head could not be read: {error}") from error

    def _print_head(self) -> None:
        head = sealing.newest_head()
        if head is None:
            raise CommandError("nothing is sealed yet")
        self.stdout.write(str(head))

    def _verify(self, heads: list[sealing.Head], *, after: int | None, without_head: bool) -> None:
        report = sealing.verify(heads, after=after)
        if report.after != after:
            raise CommandError(f"there is no sealed entry {after} to begin behind")
        behind = f", behind {after}" if after else ""
        self.stdout.write(
            f"sealed entries that are intact: {report.checked}{behind}, the last of them: {report.until or '-'}, "
            f"kept heads compared: {report.heads}"
        )
        if not report.ok:
            with translation.override("en"):
                raise CommandError("\n".join(report.sentences()))
        if (report.until or report.after) and not report.heads:
            blind = "no kept head was compared: a trail that was cut or rewritten as a whole would not show"
            if not without_head:
                raise CommandError(
                    f"{blind}; none is in STATE_DIR ({settings.STATE_DIR}). "
                    "--head names a file of them, --no-head says that there is none"
                )
            self.stdout.write(blind)
        self.stdout.write("the trail is intact")
