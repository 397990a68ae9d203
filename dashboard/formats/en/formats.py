"""Dates as the staff read them, in both languages: 2026/11/22 18:20."""

DATE_FORMAT = "Y/m/d"
DATETIME_FORMAT = "Y/m/d H:i:s"  # used by the admin, where auditors need the seconds
SHORT_DATE_FORMAT = "Y/m/d"
SHORT_DATETIME_FORMAT = "Y/m/d H:i"
TIME_FORMAT = "H:i"
