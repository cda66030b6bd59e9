package qflow

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Refusal is what a call was refused with.
type Refusal struct {
	Code    codes.Code
	Message string
	// A stable word in upper snake case; branch on it.
	Reason string
	// What it is about: ids, limits, the current etag.
	Facts map[string]string
	// The fields of the request that were at fault.
	Fields []FieldViolation
	// When to try again, where the server knows; else zero.
	RetryAfter time.Duration
}

// FieldViolation is one field at fault, by its path.
type FieldViolation struct{ Field, Description string }

// Refused reads an error of a call; false for one that no call gave.
func Refused(err error) (Refusal, bool) {
	told, ok := status.FromError(err)
	if err == nil || !ok {
		return Refusal{}, false
	}
	refusal := Refusal{Code: told.Code(), Message: told.Message()}
	for _, detail := range told.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			refusal.Reason, refusal.Facts = detail.GetReason(), detail.GetMetadata()
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				refusal.Fields = append(
					refusal.Fields, FieldViolation{each.GetField(), each.GetDescription()},
				)
			}
		case *errdetails.RetryInfo:
			refusal.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return refusal, true
}
