package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	// Details of errors are written as JSON by their types.
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"

	"qflow.dev/gateway/translate"
	qflow "qflow.dev/go"
)

const (
	// Of a call; and of each line of a stream of messages. A message is at most 4 MiB, and bytes
	// become a third longer as JSON.
	bodyBytesMax  = 6 << 20
	healthTimeout = 5 * time.Second
)

var errLineTooLong = errors.New("a message of the stream is too long: each stands on a line of its own")

// newHandler translates every call that users may make, and answers /healthz.
func newHandler(ctx context.Context, client *qflow.Client) (http.Handler, error) {
	translator := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
			Marshaler: &runtime.JSONPb{
				// The names of the contract, which is what errors call fields by.
				MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
				UnmarshalOptions: protojson.UnmarshalOptions{},
			},
		}),
	)
	connections := map[string]*grpc.ClientConn{
		"registry":     client.Registry,
		"orchestrator": client.Orchestrator,
		"runner":       client.Runner,
		"telemetry":    client.Telemetry,
	}
	for service, registers := range translate.Services {
		if connections[service] == nil {
			return nil, errors.New("no address of the " + service + " is told: QFLOW_" + strings.ToUpper(service))
		}
		for _, register := range registers {
			if err := register(ctx, translator, connections[service]); err != nil {
				return nil, err
			}
		}
	}
	all := http.NewServeMux()
	all.Handle("/", bounded(translator))
	all.HandleFunc("GET /healthz", func(answer http.ResponseWriter, request *http.Request) {
		healthy(answer, request, connections)
	})
	return all, nil
}

// bounded keeps what is held of a request in memory small.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		if streamsIn(request.URL.Path) {
			request.Body = &lines{ReadCloser: request.Body}
		} else {
			request.Body = http.MaxBytesReader(answer, request.Body, bodyBytesMax)
		}
		next.ServeHTTP(answer, request)
	})
}

// streamsIn says whether a call takes a stream of messages.
func streamsIn(path string) bool {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return false
	}
	method, ok := found.(protoreflect.MethodDescriptor)
	return ok && method.IsStreamingClient()
}

// lines passes a body on whose lines are short enough.
type lines struct {
	io.ReadCloser
	length int
}

func (body *lines) Read(into []byte) (int, error) {
	count, err := body.ReadCloser.Read(into)
	for _, each := range into[:count] {
		body.length++
		if each == '\n' {
			body.length = 0
		}
		if body.length > bodyBytesMax {
			return 0, status.Error(codes.InvalidArgument, errLineTooLong.Error())
		}
	}
	return count, err
}

// healthy answers 200 where every service says that it serves, else 503 and which does not.
func healthy(answer http.ResponseWriter, request *http.Request, connections map[string]*grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(request.Context(), healthTimeout)
	defer cancel()
	for service, connection := range connections {
		told, err := healthv1.NewHealthClient(connection).Check(ctx, &healthv1.HealthCheckRequest{})
		if err != nil || told.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			http.Error(answer, service+" does not serve", http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = io.WriteString(answer, "serving\n")
}
