-- I18: a sandbox that serves has a runner that lives
-- Settles: may be so for a moment while runs go on.
SELECT 'containers' AS place, c.id::text AS what, coalesce(r.state, 'no runner') AS facts
  FROM containers c
  LEFT JOIN runner_members r ON r.incarnation = c.runner_incarnation
 WHERE c.status IN ('creating', 'running') AND (r.incarnation IS NULL OR r.state = 'gone')
