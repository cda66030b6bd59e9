"""Codecs of dates, times and ids."""

from .problems import Mismatch, expected
from .texts import DATE_TEXT, DATETIME_TEXT, TIME_TEXT, is_decimal


class MomentCodecs:
    """Codecs of dates, times and ids."""

    def _decode_decimal(self, kind, depth):
        from decimal import Decimal, InvalidOperation

        def decode(plain):
            if type(plain) is not str or not is_decimal(plain):
                raise expected("decimal as text", plain)
            try:
                return Decimal(plain)
            except InvalidOperation:
                raise Mismatch("expected a decimal as text") from None

        return decode

    def _encode_decimal(self, kind, depth):
        from decimal import Decimal

        def encode(value):
            if not isinstance(value, Decimal):
                raise expected("Decimal", value)
            text = Decimal.__str__(value)
            if not is_decimal(text):
                raise Mismatch(
                    "the Decimal is not finite, or beyond 4300 digits or an exponent of 6",
                    "serialization_error",
                )
            return text

        return encode

    def _decode_uuid(self, kind, depth):
        from uuid import UUID

        def decode(plain):
            if type(plain) is not str or len(plain) != 36:
                raise expected("UUID as text", plain)
            try:
                return UUID(plain)
            except ValueError:
                raise Mismatch("expected a UUID as text") from None

        return decode

    def _encode_uuid(self, kind, depth):
        from uuid import UUID

        def encode(value):
            if not isinstance(value, UUID):
                raise expected("UUID", value)
            return str(value)

        return encode

    def _decode_datetime(self, kind, depth):
        from datetime import datetime

        return self._iso_decoder(datetime, "datetime", DATETIME_TEXT)

    def _encode_datetime(self, kind, depth):
        from datetime import datetime

        return self._iso_encoder(
            lambda value: isinstance(value, datetime), "datetime", DATETIME_TEXT
        )

    def _decode_date(self, kind, depth):
        from datetime import date

        return self._iso_decoder(date, "date", DATE_TEXT)

    def _encode_date(self, kind, depth):
        from datetime import date, datetime

        return self._iso_encoder(
            lambda value: isinstance(value, date) and not isinstance(value, datetime),
            "date",
            DATE_TEXT,
        )

    def _decode_time(self, kind, depth):
        from datetime import time as clock_time

        return self._iso_decoder(clock_time, "time", TIME_TEXT)

    def _encode_time(self, kind, depth):
        from datetime import time as clock_time

        return self._iso_encoder(lambda value: isinstance(value, clock_time), "time", TIME_TEXT)

    def _decode_timedelta(self, kind, depth):
        from datetime import timedelta

        def decode(plain):
            if type(plain) not in (int, float):
                raise expected("timedelta as seconds", plain)
            try:
                return timedelta(seconds=plain)
            except OverflowError:
                raise Mismatch("the timedelta is out of range") from None

        return decode

    def _encode_timedelta(self, kind, depth):
        from datetime import timedelta

        def encode(value):
            if not isinstance(value, timedelta):
                raise expected("timedelta", value)
            if value.microseconds == 0:
                return value.days * 86400 + value.seconds
            seconds = value.total_seconds()
            if timedelta(seconds=seconds) != value:
                raise Mismatch(
                    "the timedelta is too long for its microseconds", "serialization_error"
                )
            return seconds

        return encode
