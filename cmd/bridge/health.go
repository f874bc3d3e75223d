package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hookbus/bridge/ingress"
)

type healthCmd struct {
	Admin string `help:"Admin address of the bridge to ask (BRIDGE_ADMIN_ADDR by default)." placeholder:"URL"`
	JSON  bool   `help:"Print the answer as it is."`
}

func (healthCmd) Help() string {
	return "For containers without a shell, and for scripts: exit status 0 if the bridge is ready, else 1."
}

func (h *healthCmd) Run(c *cli) error {
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	if h.Admin == "" {
		h.Admin = cfg.AdminAddr
	}
	client := &http.Client{Timeout: 3 * time.Second}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(c.ctx, http.MethodGet, adminURL(h.Admin)+"/readyz", nil)
	if err != nil {
		return usageError(fmt.Sprintf("--admin %q is no address", h.Admin))
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("no bridge answers: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	var r ingress.Readiness
	if err := json.Unmarshal(text, &r); err != nil || response.StatusCode != http.StatusOK && response.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("%s is not answered by a bridge: status %d", request.URL.Redacted(), response.StatusCode)
	}
	if h.JSON {
		if _, err := c.stdout.Write(text); err != nil {
			return err
		}
	} else {
		b := bridgeStatus{Ready: r}
		fmt.Fprintln(c.stdout, b.summary())
		for _, w := range r.Warnings {
			fmt.Fprintln(c.stdout, "warning:", w)
		}
	}
	if !r.Ready {
		return errors.New("not ready")
	}
	return nil
}
