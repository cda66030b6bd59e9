-- I33: an event is not left behind for an hour
SELECT 'outbox_events' AS place, id::text AS what, kind AS facts
  FROM outbox_events
 WHERE sent_at IS NULL AND created_at < now() - interval '1 hour'
