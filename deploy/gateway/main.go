// Command gateway answers JSON over HTTP for a Qflow: every call of the contract by its full name,
//
//	POST /qflow.orchestrator.v1.ExecutionService/GetExecution  {"execution_id": "…"}
//
// with the caller's own token and the errors that gRPC callers get. It keeps nothing.
//
// "gateway check" asks the one that runs here whether all services serve behind it, for an image that
// has nothing else to ask with.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	qflow "qflow.dev/go"
)

const (
	listenDefault     = "127.0.0.1:7180"
	headerBytesMax    = 16 << 10
	headerTimeout     = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	drainTimeout      = 30 * time.Second
	checkTimeout      = 5 * time.Second
	certificateFile   = "QFLOW_TLS_CERTIFICATE_FILE"
	certificateKey    = "QFLOW_TLS_KEY_FILE"
	listenEnvironment = "QFLOW_GATEWAY_LISTEN"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "check" {
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	if err := run(); err != nil {
		slog.Error("gateway_stopped", "fault", err.Error())
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	options := qflow.OptionsFromEnvironment()
	options.Token = "" // callers bring their own
	client, err := qflow.New(options)
	if err != nil {
		return err
	}
	defer client.Close()
	handler, err := newHandler(ctx, client)
	if err != nil {
		return err
	}
	listener, err := listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
	}
	slog.Info("gateway_serves", "address", listener.Addr().String())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drained, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drained); err != nil {
		return errors.Join(err, server.Close()) // watches that go on are cut; they resume elsewhere
	}
	return nil
}

// check asks this machine's gateway for its health. What it is shown is not verified: it is asked on
// loopback, by an address that no certificate has to name, and is sent no token.
func check() error {
	address := os.Getenv(listenEnvironment)
	if address == "" {
		address = listenDefault
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	scheme := "http"
	if os.Getenv(certificateFile) != "" {
		scheme = "https"
	}
	asking := http.Client{
		Timeout:   checkTimeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // see above
	}
	answer, err := asking.Get(scheme + "://" + net.JoinHostPort("127.0.0.1", port) + "/healthz")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New("not all services serve: " + answer.Status)
	}
	return nil
}

// listen opens the port, with TLS where a certificate is given. Tokens travel with every call, so
// plain text is spoken on loopback alone.
func listen() (net.Listener, error) {
	address := os.Getenv(listenEnvironment)
	if address == "" {
		address = listenDefault
	}
	certificate, key := os.Getenv(certificateFile), os.Getenv(certificateKey)
	if certificate == "" {
		if !onLoopback(address) {
			return nil, fmt.Errorf(
				"%s is %s, which others reach, and tokens would travel in plain text: set %s and %s",
				listenEnvironment, address, certificateFile, certificateKey,
			)
		}
		return net.Listen("tcp", address)
	}
	if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
		return nil, err
	}
	return tls.Listen("tcp", address, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		// Read with every connection, so that a renewed certificate needs no restart.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certificate, key)
			return &pair, err
		},
	})
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	parsed := net.ParseIP(host)
	return parsed != nil && parsed.IsLoopback()
}
