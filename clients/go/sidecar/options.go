package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	gemma "github.com/gemma-server/gemma-server/clients/go"
)

// checkOptions refuses options that say where the server is, which is the
// sidecar's to know: its own would not go with them, or take their place. It
// looks where they lead by themselves, and whether they go with an address.
func checkOptions(options []gemma.Option) error {
	lost := gemma.WithHTTPClient(&http.Client{Transport: compass{}})
	for _, own := range [][]gemma.Option{{lost}, {lost, gemma.WithBaseURL(gemma.DefaultBaseURL)}} {
		client := gemma.New(slices.Concat(options, own)...)
		if _, err := client.Ready(context.Background()); !errors.Is(err, errDefault) {
			return fmt.Errorf("sidecar: Config.ClientOptions, which may not say where the server is: %w", err)
		}
	}
	return nil
}

var (
	errDefault   = errors.New("where clients go that were told nothing")
	errElsewhere = errors.New("not the sidecar's")
)

// compass tells where requests would go, and lets none through.
type compass struct{}

func (compass) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), gemma.DefaultBaseURL+"/") {
		return nil, errDefault
	}
	return nil, errElsewhere
}
