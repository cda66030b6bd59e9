// Package qflow connects to a Qflow: addresses, TLS, token, deadlines, and which calls are tried
// again. The calls themselves are the generated stubs in qflow/*/v1; Refused reads what a refused
// call says, and Watch follows a run over cuts.
package qflow

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Which calls may be tried again, when and how often: the published configuration of the contract.
//
//go:embed service_config.json
var serviceConfig string

const (
	defaultDeadline = 60 * time.Second
	messageBytesMax = 16 << 20
)

// Options say where a Qflow is and as whom it is called.
type Options struct {
	// The addresses of the services, host:port. Those that are not called may stay empty.
	Registry, Orchestrator, Runner, Telemetry string
	// A bearer token; empty until SetToken, for signing in.
	Token string
	// Whether connections are encrypted. Without a CAFile the authorities of this machine are believed.
	TLS bool
	// The authority to believe, PEM; implies TLS.
	CAFile string
	// Who one is where the server asks for it, PEM: mutual TLS.
	CertificateFile, KeyFile string
	// The name in the server's certificate, where that is not the host of the address.
	ServerName string
	// How long a unary call may take whose context has no deadline; 60 s when zero.
	Deadline time.Duration
}

// OptionsFromEnvironment reads QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER, QFLOW_TELEMETRY,
// QFLOW_TOKEN, QFLOW_CA_FILE, QFLOW_CERTIFICATE_FILE and QFLOW_KEY_FILE.
func OptionsFromEnvironment() Options {
	return Options{
		Registry:        os.Getenv("QFLOW_REGISTRY"),
		Orchestrator:    os.Getenv("QFLOW_ORCHESTRATOR"),
		Runner:          os.Getenv("QFLOW_RUNNER"),
		Telemetry:       os.Getenv("QFLOW_TELEMETRY"),
		Token:           os.Getenv("QFLOW_TOKEN"),
		CAFile:          os.Getenv("QFLOW_CA_FILE"),
		CertificateFile: os.Getenv("QFLOW_CERTIFICATE_FILE"),
		KeyFile:         os.Getenv("QFLOW_KEY_FILE"),
	}
}

// Client holds one connection per service; hand them to the constructors of the generated stubs.
type Client struct {
	Registry, Orchestrator, Runner, Telemetry *grpc.ClientConn

	token atomic.Pointer[string]
}

// New makes the connections that Options name an address for; they open when first used.
func New(options Options) (*Client, error) {
	transport, err := transportOf(options)
	if err != nil {
		return nil, err
	}
	client := &Client{}
	client.SetToken(options.Token)
	deadline := options.Deadline
	if deadline == 0 {
		deadline = defaultDeadline
	}
	for _, each := range []struct {
		address string
		place   **grpc.ClientConn
	}{
		{options.Registry, &client.Registry},
		{options.Orchestrator, &client.Orchestrator},
		{options.Runner, &client.Runner},
		{options.Telemetry, &client.Telemetry},
	} {
		if each.address == "" {
			continue
		}
		*each.place, err = grpc.NewClient(
			each.address,
			grpc.WithTransportCredentials(transport),
			grpc.WithDefaultServiceConfig(serviceConfig),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
			grpc.WithUnaryInterceptor(client.unary(deadline)),
			grpc.WithStreamInterceptor(client.stream),
		)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("address %q: %w", each.address, err), client.Close())
		}
	}
	return client, nil
}

// SetToken makes later calls carry this token; empty for none.
func (client *Client) SetToken(token string) { client.token.Store(&token) }

// Close ends the connections; calls under way end as cancelled.
func (client *Client) Close() error {
	var failed error
	for _, each := range []*grpc.ClientConn{
		client.Registry, client.Orchestrator, client.Runner, client.Telemetry,
	} {
		if each != nil {
			failed = errors.Join(failed, each.Close())
		}
	}
	return failed
}

func (client *Client) unary(deadline time.Duration) grpc.UnaryClientInterceptor {
	return func(
		ctx context.Context, method string, request, answer any,
		connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
	) error {
		if _, has := ctx.Deadline(); !has {
			limited, cancel := context.WithTimeout(ctx, deadline)
			defer cancel()
			ctx = limited
		}
		return invoke(client.bearing(ctx), method, request, answer, connection, options...)
	}
}

func (client *Client) stream(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return open(client.bearing(ctx), description, connection, method, options...)
}

func (client *Client) bearing(ctx context.Context) context.Context {
	if token := *client.token.Load(); token != "" {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return ctx
}

func transportOf(options Options) (credentials.TransportCredentials, error) {
	if !options.TLS && options.CAFile == "" {
		return insecure.NewCredentials(), nil
	}
	configuration := &tls.Config{ServerName: options.ServerName, MinVersion: tls.VersionTLS12}
	if options.CAFile != "" {
		authorities, err := os.ReadFile(options.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
		configuration.RootCAs = x509.NewCertPool()
		if !configuration.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, fmt.Errorf("authority: no certificate in %s", options.CAFile)
		}
	}
	if options.CertificateFile != "" {
		own, err := tls.LoadX509KeyPair(options.CertificateFile, options.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("own certificate: %w", err)
		}
		configuration.Certificates = []tls.Certificate{own}
	}
	return credentials.NewTLS(configuration), nil
}
