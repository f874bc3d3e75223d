package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// row is a line of the results: medians, and their ratios to the references.
type row struct {
	Setup       string  `json:"setup"`
	System      string  `json:"system"`
	Connections int     `json:"connections"`
	Steady      float64 `json:"steady_requests_per_second,omitempty"` // 0: as fast as answers come
	sample
	OfVerify     float64 `json:"rate_of_verify_only"`
	OfPublish    float64 `json:"rate_of_publish_only"`
	CPUOfPublish float64 `json:"cpu_of_publish_only"`
	P99OfPublish float64 `json:"p99_of_publish_only"`
}

func show(w io.Writer, rows []row) {
	first := rows[0]
	how := "closed loop"
	if first.Steady > 0 {
		how = fmt.Sprintf("open loop, %.0f/s", first.Steady)
	}
	fmt.Fprintf(w, "\n%s, %d connections, %s\n", first.Setup, first.Connections, how)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\treq/s\tof verify\tof publish\tp50 ms\tp99 ms\tp99.9 ms\tp99 of publish\tCPU s/10k\tof publish\tNATS CPU\tpeak MiB\tothers\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%.2f\t\n",
			r.System, r.Rate, r.OfVerify, r.OfPublish, r.P50, r.P99, r.P999, r.P99OfPublish, r.CPU, r.CPUOfPublish, r.NATS, r.Peak, r.Others)
	}
	t.Flush()
}
