"""Dates as the staff read them, in both languages: 2026/11/22 18:20."""

DATE_FORMAT = "Y/m/d"
DATETIME_FORMAT = "Y/m/d H:i:s"  # the admin's: an auditor wants the second
SHORT_DATE_FORMAT = "Y/m/d"
SHORT_DATETIME_FORMAT = "Y/m/d H:i"
TIME_FORMAT = "H:i"
